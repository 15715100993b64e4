# SPDX-License-Identifier: Apache-2.0
"""The OCI spec of a pause container: the process that keeps a pod's namespaces alive for its containers.

Containers in its PID namespace may ptrace it, so there is nothing to gain from it: its root filesystem has its
program alone, and it has no capabilities, no descriptors of the daemon and noNewPrivileges (decision 0064).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pvecri.model import IdMapping
from pvecri.oci import apparmor, spec_linux
from pvecri.oci.features import HostFeatures
from pvecri.oci.runtime_spec import (
    OCI_VERSION,
    Capabilities,
    DeviceRule,
    Linux,
    Mount,
    Namespace,
    Process,
    Resources,
    Root,
    Spec,
    User,
    encode,
)

PROGRAM = "catatonit"
"""Run as `catatonit -P`: pauses forever and reaps orphans of its PID namespace."""

NOBODY = 65_534
"""Its uid and gid inside the pod's user namespace."""


@dataclass(frozen=True)
class PausePlan:
    """`joined` are paths of namespaces by OCI type, `made` the types of new ones besides `pid` and `mount`.

    `mappings` are those of the pod's user namespace, joined or new; empty for the node's.
    """

    rootfs: Path
    cgroup: str
    joined: dict[str, str]
    made: tuple[str, ...]
    mappings: tuple[IdMapping, ...]
    features: HostFeatures


def build(plan: PausePlan) -> bytes:
    """The spec as JSON."""
    # The OCI runtime cannot switch to an ID that the user namespace does not map.
    user = NOBODY if _mapped(NOBODY, plan.mappings) else 0
    confined = plan.features.apparmor_default
    return encode(
        Spec(
            oci_version=OCI_VERSION,
            root=Root(path=str(plan.rootfs), readonly=True),
            process=Process(
                terminal=False,
                user=User(uid=user, gid=user),
                args=(f"/{PROGRAM}", "-P"),
                env=(),
                cwd="/",
                capabilities=Capabilities(),
                no_new_privileges=True,
                # If it is killed the pod's namespaces end, and with them all containers that share PIDs.
                oom_score_adj=plan.features.lowest_oom_score_adj,
                apparmor_profile=apparmor.DEFAULT_PROFILE if confined else "",
            ),
            # The OCI runtimes need /proc/self/fd and /dev/null in every container.
            mounts=(
                Mount(destination="/proc", type="proc", source="proc", options=("nosuid", "noexec", "nodev")),
                Mount(destination="/dev", type="tmpfs", source="tmpfs", options=("nosuid", "size=64k")),
            ),
            linux=_linux(plan),
        )
    )


def _linux(plan: PausePlan) -> Linux:
    joins_user = "user" in plan.joined and plan.features.oci_runtime.needs_mappings_with_userns_path
    mapped = plan.mappings if "user" in plan.made or joins_user else ()
    return Linux(
        namespaces=(
            *(Namespace(type=kind) for kind in ("mount", "pid", *plan.made)),
            *(Namespace(type=kind, path=path) for kind, path in plan.joined.items()),
        ),
        cgroups_path=plan.cgroup,
        resources=Resources(devices=(DeviceRule(allow=False, access="rwm"),)),
        uid_mappings=spec_linux.id_mappings(mapped),
        gid_mappings=spec_linux.id_mappings(mapped),
    )


def _mapped(inside: int, mappings: tuple[IdMapping, ...]) -> bool:
    return not mappings or any(entry.has(inside) for entry in mappings)
