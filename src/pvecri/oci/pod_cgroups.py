# SPDX-License-Identifier: Apache-2.0
"""Where a pod's processes are in the cgroup trees: below the CT's group, so that its limits cover all of them."""

from __future__ import annotations

from dataclasses import dataclass

from pvecri.model import ContainerId, Vmid


@dataclass(frozen=True)
class PodCgroups:
    """The groups of one pod, as paths that are the same in every tree."""

    vmid: Vmid

    @property
    def ct(self) -> str:
        """The CT's group: lxc.cgroup.dir.container, as Proxmox configures it."""
        return f"/lxc/{self.vmid}"

    @property
    def init(self) -> str:
        """The CT's own processes: lxc.cgroup.dir.container.inner."""
        return f"{self.ct}/ns"

    @property
    def monitors(self) -> str:
        """The conmons of all containers. In the daemon's group systemd would kill them with the daemon."""
        return f"{self.ct}/conmon"

    @property
    def pause(self) -> str:
        """The pause container."""
        return f"{self.ct}/pause"

    def container(self, container: ContainerId) -> str:
        """A container. Not below `init`: in version 2 a group with processes has no children with limits."""
        return f"{self.ct}/{container}"
