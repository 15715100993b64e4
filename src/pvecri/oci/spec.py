# SPDX-License-Identifier: Apache-2.0
"""Builds the OCI runtime spec (config.json) of a container from its plan: pure functions, one for each part."""

from __future__ import annotations

import posixpath

from msgspec.structs import asdict, replace

from pvecri.errors import InvalidArgument
from pvecri.linux import cgroups
from pvecri.model import Resources
from pvecri.oci import adjustment, cdi, spec_linux, spec_mounts
from pvecri.oci.features import HostFeatures
from pvecri.oci.plan import Plan
from pvecri.oci.runtime_spec import OCI_VERSION, Capabilities, Process, Root, Spec, User, decode, encode

DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def build(plan: Plan) -> bytes:
    """The spec as JSON; InvalidArgument names a field of the request that is not supported."""
    spec = Spec(
        oci_version=OCI_VERSION,
        root=Root(path=str(plan.rootfs), readonly=plan.config.security.readonly_rootfs),
        process=process(plan),
        mounts=spec_mounts.mounts(plan),
        annotations=annotations_of(plan),
        linux=spec_linux.linux(plan),
    )
    for edits in plan.edits:
        spec = cdi.apply(spec, edits)
    if plan.adjustment is not None:
        spec = adjustment.apply(spec, plan.adjustment)
    return encode(spec)


def with_limits(document: bytes, wanted: Resources, features: HostFeatures) -> bytes:
    """A spec with updated limits, for a container that has not been started; unset ones are kept."""
    spec, limits = decode(document), spec_linux.limits(wanted, features)
    changed = {name: value for name, value in asdict(limits).items() if value}
    return encode(replace(spec, linux=replace(spec.linux, resources=replace(spec.linux.resources, **changed))))


def allowed_devices(document: bytes) -> list[cgroups.DeviceRule]:
    """The allow rules of a spec, which lack the devices that the OCI runtime allows every container."""
    rules = decode(document).linux.resources.devices
    return [cgroups.DeviceRule(each.type, each.major, each.minor, each.access) for each in rules if each.allow]


def process(plan: Plan) -> Process:
    """The `process` object."""
    config = plan.config
    capabilities = tuple(sorted(plan.capabilities))
    ambient = tuple(sorted(spec_linux.ambient_capabilities(plan)))
    return Process(
        terminal=config.tty,
        user=User(uid=plan.user.uid, gid=plan.user.gid, additional_gids=plan.user.groups, umask=0o022),
        args=arguments(plan),
        env=environment(plan),
        # The OCI runtimes want an absolute path; builders other than Docker's left relative ones in images.
        cwd=config.working_dir or posixpath.join("/", plan.image.working_dir),
        capabilities=Capabilities(
            bounding=capabilities,
            effective=capabilities,
            permitted=capabilities,
            # Empty unless ambient needs it: with more, execve(2) of a file with inheritable capabilities gains
            # them even after the process has dropped them (CVE-2022-24769).
            inheritable=ambient,
            ambient=ambient,
        ),
        no_new_privileges=config.security.no_new_privs,
        # The kernel lets only CAP_SYS_RESOURCE lower it, and the OCI runtimes fail if they cannot set it.
        oom_score_adj=max(config.resources.oom_score_adj, plan.features.lowest_oom_score_adj),
        apparmor_profile=spec_linux.apparmor_profile(plan),
    )


def arguments(plan: Plan) -> tuple[str, ...]:
    """The argv: `command` overrides the image's entrypoint and cmd, `args` its cmd (CRI ContainerConfig).

    An entrypoint of one empty string is none: so Dockerfiles reset that of their base image (`ENTRYPOINT [""]`).
    """
    config, image = plan.config, plan.image
    if config.command:
        return (*config.command, *config.args)
    entrypoint = () if image.entrypoint == ("",) else image.entrypoint
    combined = (*entrypoint, *(config.args or image.cmd))
    if not combined:
        raise InvalidArgument("config.command", f"none is given and the image {plan.image_reference} has none")
    return combined


def environment(plan: Plan) -> tuple[str, ...]:
    """NAME=VALUE with unique names: the image's, overridden by the request's.

    What the image has without a name or without `=` is left out, as Docker and containerd do.
    """
    entries = (entry.partition("=") for entry in (DEFAULT_PATH, *plan.image.env))
    variables = {name: value for name, separator, value in entries if name and separator}
    # TERM and HOSTNAME as CRI-O and containerd set them; a variable of the request overrides both.
    if plan.config.tty:
        variables.setdefault("TERM", "xterm")
    variables["HOSTNAME"] = plan.hostname
    variables.update(plan.config.envs)
    return tuple(f"{name}={value}" for name, value in variables.items())


def annotations_of(plan: Plan) -> dict[str, str]:
    """The request's annotations, and those that OCI hooks and tools look for (containerd's names)."""
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
