# SPDX-License-Identifier: Apache-2.0
"""Finds volumes that cannot be idmapped before the pod's CT is created: their files would appear as nobody's.

The CRI names volumes only in CreateContainer, but the kubelet mounts its own
(`/var/lib/kubelet/pods/UID/volumes`) before RunPodSandbox.
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
"""Pseudo filesystems: root owns their files, and everyone or nobody else may read them."""

_IN_MEMORY = frozenset({"tmpfs", "ramfs"})
"""Can be idmapped since Linux 6.3. On older kernels a world-readable one, such as a ConfigMap's, works without."""

_VOLUMES = frozenset({"volumes", "volume-subpaths", "volumeDevices"})


def owners_matter(fstype: str) -> bool:
    """Whether it matters that files of such a filesystem appear as nobody's."""
    return fstype not in _KERNELS_OWN | _IN_MEMORY


class VolumeProbe:
    """Tries which mounts can be idmapped, with a user namespace of its own. Blocks: call it in a thread."""

    @cached_property
    def _userns(self) -> int:
        # The IDs do not matter here: the kernel refuses the filesystem's type (mount_setattr(2)).
        return idmapped.open_user_namespace(first_id=100_000, length=65_536)

    def unmappable(self, pod_uid: str) -> list[str]:
        """The volumes of a kubelet's pod that need the node's user namespace, as `MOUNTPOINT (FSTYPE)`."""
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
        """Close the user namespace. Idempotent."""
        if "_userns" in self.__dict__:
            os.close(self.__dict__.pop("_userns"))


def of_pod(pod_uid: str, table: Sequence[MountEntry]) -> Iterator[MountEntry]:
    """The mounts of a pod's volumes: those below `pods/UID/volumes` of any kubelet root directory."""
    for entry in table:
        parts = entry.mountpoint.parts
        for index, part in enumerate(parts[:-2]):
            if part == "pods" and parts[index + 1] == pod_uid and parts[index + 2] in _VOLUMES:
                yield entry
                break


def open_to_everyone(directory: Path) -> bool:
    """Whether any user can read every file and search every directory below."""
    for path, directories, files in os.walk(directory):
        for name in (".", *directories, *files):
            status = Path(path, name).lstat()
            wanted = 0o5 if stat.S_ISDIR(status.st_mode) else 0o4
            if not stat.S_ISLNK(status.st_mode) and status.st_mode & wanted != wanted:
                return False
    return True
