# SPDX-License-Identifier: Apache-2.0
"""The input of the OCI spec builder: plain values, so that the builders are pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pvecri.model import (
    ContainerConfig,
    ContainerId,
    ContainerUser,
    IdMapping,
    ImageConfig,
    SandboxConfig,
    SandboxId,
)
from pvecri.oci.adjustment import Adjustment
from pvecri.oci.cdi import Edits
from pvecri.oci.devices import HostDevice
from pvecri.oci.features import HostFeatures
from pvecri.oci.runtime_spec import Seccomp


@dataclass(frozen=True)
class BindSource:
    """A resolved mount of the request; `source` is a path of the node.

    `restrictions` are the nosuid, nodev and noexec of the mount that the source is on. They are locked in a user
    namespace: a remount, as for read-only, fails with EPERM unless it repeats them (mount_namespaces(7)).
    """

    source: Path
    container_path: str
    readonly: bool
    recursive_readonly: bool
    propagation: str
    restrictions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """A container, with every reference of the request resolved.

    `namespace_dir` has the pins of the pod's namespaces. `target_pid` is a PID in the CT's PID namespace, which is
    the OCI runtime's. `mappings` are those of the pod's user namespace, empty for the node's; a container in one
    has its devices bind mounted from `device_nodes` (devices.make_nodes).
    """

    id: ContainerId
    sandbox_id: SandboxId
    cgroup: str
    config: ContainerConfig
    sandbox: SandboxConfig
    image: ImageConfig
    image_reference: str
    rootfs: Path
    user: ContainerUser
    binds: tuple[BindSource, ...]
    devices: tuple[HostDevice, ...]
    device_nodes: Path
    pod_files: Path
    pod_files_restrictions: tuple[str, ...]
    hostname: str
    mappings: tuple[IdMapping, ...]
    namespace_dir: str
    target_pid: int | None
    capabilities: frozenset[str]
    seccomp: Seccomp | None
    features: HostFeatures
    pids_limit: int = 0
    edits: tuple[Edits, ...] = ()
    adjustment: Adjustment | None = None

    @property
    def privileged(self) -> bool:
        """Whether the request is for a privileged container."""
        return self.config.security.privileged
