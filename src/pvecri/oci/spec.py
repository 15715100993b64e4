# SPDX-License-Identifier: Apache-2.0
"""The OCI runtime spec (config.json) of a container, from its plan: pure functions, one for each part."""

from __future__ import annotations

import json

from pvecri.errors import InvalidArgument
from pvecri.linux.cgroups import DeviceRule
from pvecri.model import Resources
from pvecri.oci import adjustment, cdi, spec_linux, spec_mounts
from pvecri.oci.abilities import Abilities
from pvecri.oci.plan import Json, Plan

OCI_VERSION = "1.0.2"
DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def build(plan: Plan) -> bytes:
    """The spec as JSON; InvalidArgument names the field of the request that has no meaning here."""
    document: Json = {
        "ociVersion": OCI_VERSION,
        "root": {"path": str(plan.rootfs), "readonly": plan.config.security.readonly_rootfs},
        "process": process(plan),
        "mounts": spec_mounts.mounts(plan),
        "annotations": described_by(plan),
        "linux": spec_linux.linux(plan),
    }
    for edits in plan.edits:
        cdi.apply(document, edits)
    if plan.adjustment is not None:
        adjustment.apply(document, plan.adjustment)
    return json.dumps(document, indent=1).encode()


def with_limits(document: bytes, wanted: Resources, abilities: Abilities) -> bytes:
    """A spec with other limits, for a container that has not been started."""
    changed: Json = json.loads(document)
    changed["linux"]["resources"] |= spec_linux.limits(wanted, abilities)
    return json.dumps(changed, indent=1).encode()


def allowed_devices(document: bytes) -> list[DeviceRule]:
    """The devices that a spec allows, beyond those that every container has."""
    rules = json.loads(document)["linux"]["resources"]["devices"]
    return [
        DeviceRule(rule["type"], rule.get("major"), rule.get("minor"), rule["access"])
        for rule in rules
        if rule["allow"]
    ]


def working_dir(document: bytes) -> str:
    """Where the container's own process starts."""
    return str(json.loads(document)["process"]["cwd"])


def process(plan: Plan) -> Json:
    """The `process` object: what runs, as whom, with which rights."""
    config = plan.config
    capabilities = sorted(plan.capabilities)
    ambient = sorted(spec_linux.ambient_capabilities(plan))
    described: Json = {
        "terminal": config.tty,
        "user": {
            "uid": plan.user.uid,
            "gid": plan.user.gid,
            "additionalGids": list(plan.user.groups),
            "umask": 0o022,
        },
        "args": arguments(plan),
        "env": environment(plan),
        "cwd": config.working_dir or plan.image.working_dir or "/",
        "capabilities": {
            "bounding": capabilities,
            "effective": capabilities,
            "permitted": capabilities,
            # Inheritable stays empty, so that execve keeps file capabilities' meaning, unless ambient needs it.
            "inheritable": ambient,
            "ambient": ambient,
        },
        "noNewPrivileges": config.security.no_new_privs,
        "oomScoreAdj": max(config.resources.oom_score_adj, plan.abilities.lowest_oom_score_adj),
    }
    profile = spec_linux.apparmor_profile(plan)
    if profile:
        described["apparmorProfile"] = profile
    return described


def arguments(plan: Plan) -> list[str]:
    """What to execute: `command` replaces the image's entrypoint and its cmd, `args` its cmd alone.

    (CRI ContainerConfig.command and args, which follow the rules of Kubernetes' `command` and `args`.)
    """
    config, image = plan.config, plan.image
    if config.command:
        return [*config.command, *config.args]
    combined = [*image.entrypoint, *(config.args or image.cmd)]
    if not combined:
        raise InvalidArgument("config.command", f"none is given and the image {plan.image_reference} has none")
    return combined


def environment(plan: Plan) -> list[str]:
    """NAME=VALUE, each name once: the image's, then the request's over it."""
    variables = dict(entry.partition("=")[::2] for entry in (DEFAULT_PATH, *plan.image.env))
    if plan.config.tty:
        variables.setdefault("TERM", "xterm")
    variables["HOSTNAME"] = plan.hostname
    variables.update(plan.config.envs)
    return [f"{name}={value}" for name, value in variables.items()]


def described_by(plan: Plan) -> dict[str, str]:
    """What OCI hooks and tools look for, under the names that CRI runtimes share."""
    metadata = plan.sandbox.metadata
    return plan.config.annotations | {
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.container-name": plan.config.metadata.name,
        "io.kubernetes.cri.image-name": plan.image_reference,
        "io.kubernetes.cri.sandbox-id": plan.sandbox_id,
        "io.kubernetes.cri.sandbox-name": metadata.name,
        "io.kubernetes.cri.sandbox-namespace": metadata.namespace,
        "io.kubernetes.cri.sandbox-uid": metadata.uid,
    }
