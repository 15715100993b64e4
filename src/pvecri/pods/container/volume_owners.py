# SPDX-License-Identifier: Apache-2.0
"""Volumes whose files would have no owners in a user namespace, found before the pod's CT is made.

The CRI names volumes only with the containers, but a kubelet has mounted its own
(`/var/lib/kubelet/pods/UID/volumes`) by the time of RunPodSandbox.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from pvecri.linux import idmapped, mounts
from pvecri.linux.mounts import MountEntry

_KERNELS_OWN = frozenset(
    (
        "autofs binfmt_misc bpf cgroup cgroup2 configfs debugfs devpts devtmpfs efivarfs fusectl hugetlbfs mqueue "
        "nsfs proc pstore rpc_pipefs securityfs selinuxfs sysfs tracefs"
    ).split()
)
"""Filesystems that the kernel fills: their files are root's, and made for everyone to read or for nobody."""

_IN_MEMORY = frozenset({"tmpfs", "ramfs"})
"""Can be idmapped from Linux 6.3 on. Before, what is open to everyone is as good without."""

_VOLUMES = frozenset({"volumes", "volume-subpaths", "volumeDevices"})


def matter(fstype: str) -> bool:
    """Whether a pod is worse off when files of such a filesystem belong to nobody."""
    return fstype not in _KERNELS_OWN | _IN_MEMORY


class VolumeProbe:
    """Tries with a user namespace of its own which mounts can be idmapped. Blocks: for worker threads."""

    @cached_property
    def _userns(self) -> int:
        return idmapped.open_user_namespace(first_id=100_000, length=65_536)

    def unmappable(self, pod_uid: str) -> list[str]:
        """The volumes of a kubelet's pod that need the node's IDs: where each is mounted, and its filesystem."""
        return [
            f"{entry.mountpoint} ({entry.fstype})"
            for entry in of_pod(pod_uid, mounts.mounts(containing=f"/pods/{pod_uid}/"))
            if self._needs_node(entry)
        ]

    def _needs_node(self, entry: MountEntry) -> bool:
        if entry.fstype in _KERNELS_OWN or idmapped.can_be_mapped(entry.mountpoint, self._userns):
            return False
        return entry.fstype not in _IN_MEMORY or not open_to_everyone(entry.mountpoint)

    def close(self) -> None:
        """Let the user namespace go. Idempotent."""
        if "_userns" in self.__dict__:
            os.close(self.__dict__.pop("_userns"))


def of_pod(pod_uid: str, table: Sequence[MountEntry]) -> Iterator[MountEntry]:
    """The mounts of a pod's volumes: those below `pods/UID/volumes` of whichever directory the kubelet has."""
    for entry in table:
        parts = entry.mountpoint.parts
        for index, part in enumerate(parts[:-2]):
            if part == "pods" and parts[index + 1] == pod_uid and parts[index + 2] in _VOLUMES:
                yield entry
                break


def open_to_everyone(directory: Path) -> bool:
    """Whether every file below can be read, and every directory be searched, by any user."""
    for path, directories, files in os.walk(directory):
        for name in (".", *directories, *files):
            status = Path(path, name).lstat()
            wanted = 0o5 if stat.S_ISDIR(status.st_mode) else 0o4
            if not stat.S_ISLNK(status.st_mode) and status.st_mode & wanted != wanted:
                return False
    return True
