# SPDX-License-Identifier: Apache-2.0
"""The OCI spec of a pause container: the process that holds namespaces of a pod for its containers.

Whoever shares a PID namespace with it may trace it, so it has nothing to give away: a root filesystem of its own
that holds its program alone, no capability, no descriptor of ours, and no way to gain any of them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pvecri.model import IdMapping
from pvecri.oci import apparmor, spec_linux
from pvecri.oci.abilities import Abilities
from pvecri.oci.plan import Json

PROGRAM = "catatonit"
"""Started as `catatonit -P`, which waits for ever and reaps what is orphaned in its PID namespace."""

NOBODY = 65_534
"""Its uid and gid inside the pod's user namespace."""


@dataclass(frozen=True)
class PausePlan:
    """`joined` are namespaces by their OCI type and path; of `made` types it gets new ones, `pid` and `mount`
    always.

    `mappings` are those of the pod's user namespace, whether joined or made; empty for the node's.
    """

    rootfs: Path
    cgroup: str
    joined: dict[str, str]
    made: tuple[str, ...]
    mappings: tuple[IdMapping, ...]
    abilities: Abilities


def build(plan: PausePlan) -> bytes:
    """The spec as JSON."""
    user = NOBODY if _mapped(NOBODY, plan.mappings) else 0
    process: Json = {
        "terminal": False,
        "user": {"uid": user, "gid": user},
        "args": [f"/{PROGRAM}", "-P"],
        "env": [],
        "cwd": "/",
        "capabilities": {},
        "noNewPrivileges": True,
        "oomScoreAdj": plan.abilities.lowest_oom_score_adj,
    }
    if plan.abilities.apparmor_default:
        process["apparmorProfile"] = apparmor.DEFAULT_PROFILE
    document: Json = {
        "ociVersion": "1.0.2",
        "root": {"path": str(plan.rootfs), "readonly": True},
        "process": process,
        "mounts": [
            # The OCI runtimes look for their own descriptors in /proc, and for the null device in /dev.
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "size=64k"]},
        ],
        "linux": _linux(plan),
    }
    return json.dumps(document, indent=1).encode()


def _linux(plan: PausePlan) -> Json:
    namespaces: list[Json] = [{"type": kind} for kind in ("mount", "pid", *plan.made)]
    namespaces += [{"type": kind, "path": path} for kind, path in plan.joined.items()]
    described: Json = {
        "namespaces": namespaces,
        "cgroupsPath": plan.cgroup,
        "resources": {"devices": [{"allow": False, "access": "rwm"}]},
    }
    joins_user = "user" in plan.joined and plan.abilities.oci_runtime.wants_mappings_with_userns_path
    if "user" in plan.made or joins_user:
        described |= spec_linux.id_mappings(plan.mappings)
    return described


def _mapped(inside: int, mappings: tuple[IdMapping, ...]) -> bool:
    return not mappings or any(entry.has(inside) for entry in mappings)
