# SPDX-License-Identifier: Apache-2.0
"""Devices of the host for containers."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pvecri.linux import mounts
from pvecri.model import IdMapping


@dataclass(frozen=True)
class HostDevice:
    """A device node; `kind` is c or b, `mode` permission bits, `uid` and `gid` IDs in the container.

    `access` has the letters r, w and m of the cgroup's allow-list.
    """

    container_path: str
    kind: str
    major: int
    minor: int
    mode: int
    uid: int
    gid: int
    access: str


def make_nodes(directory: Path, devices: Sequence[HostDevice], mappings: Iterable[IdMapping]) -> None:
    """Mount a tmpfs at the new `directory`, with a node for each device, named by its index.

    They are bind mounted into containers with a user namespace: mknod(2) fails there, and the host's own nodes
    belong to nobody. An owner that is not mapped becomes the namespace's root.
    """
    # A tmpfs of our own, for devtmpfs cannot be idmapped and the node's own nodes must keep their owners (decision
    # 0052).
    directory.mkdir()
    mounts.mount("devices", directory, "tmpfs", mounts.MS_NOSUID | mounts.MS_NOEXEC, "mode=0755,size=64k")
    kinds = {"c": stat.S_IFCHR, "b": stat.S_IFBLK}
    table = tuple(mappings)
    for index, device in enumerate(devices):
        path = directory / str(index)
        # nodev must not be set: it would make the nodes unusable in the bind mounts, too.
        os.mknod(path, kinds[device.kind] | device.mode, os.makedev(device.major, device.minor))
        path.chmod(device.mode)  # mknod(2) applies the umask
        os.chown(path, host_id(device.uid, table), host_id(device.gid, table))


def host_id(container_id: int, mappings: Sequence[IdMapping]) -> int:
    """The host ID of a container's ID; that of the container's root if it is not mapped."""
    for entry in mappings:
        if entry.has(container_id):
            return entry.host_id + container_id - entry.container_id
    return host_id(0, mappings) if container_id else 0
