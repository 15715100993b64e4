# SPDX-License-Identifier: Apache-2.0
"""What the OCI spec of one container is built from: values only, so that the builders stay pure."""

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
    """One mount of the request, resolved: `source` is what to bind, on this host.

    `restrictions` are the nosuid, nodev and noexec of the mount that the source is on: a user namespace cannot
    take them off, and must repeat them to make the mount read-only.
    """

    source: Path
    container_path: str
    readonly: bool
    recursive_readonly: bool
    propagation: str
    restrictions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """One container, with all its names resolved.

    `namespace_dir` is where the pod's namespaces are pinned. `target_pid` is a pid as the OCI runtime sees it, in
    the pod's pid namespace. `mappings` are those of the pod's user namespace, empty when it has the node's.
    A container in a user namespace has its devices bound from `device_nodes`, where each is named by its index.
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
        """Whether the container was asked for as privileged."""
        return self.config.security.privileged
