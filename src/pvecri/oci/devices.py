# SPDX-License-Identifier: Apache-2.0
"""Devices of the node as a container shall see them."""

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
    """A device node; `kind` is c or b, `mode` its permission bits, `uid` and `gid` its owner in the container."""

    container_path: str
    kind: str
    major: int
    minor: int
    mode: int
    uid: int
    gid: int
    access: str


def make_nodes(directory: Path, devices: Sequence[HostDevice], mappings: Iterable[IdMapping]) -> None:
    """Make a node for each device, named by its place in the sequence, in a filesystem of their own.

    A process in a user namespace cannot make device nodes, and the node's own belong to nobody there: such
    containers get these bound. An owner that the namespace does not have becomes its root.
    """
    directory.mkdir()
    mounts.mount("devices", directory, "tmpfs", mounts.MS_NOSUID | mounts.MS_NOEXEC, "mode=0755,size=64k")
    kinds = {"c": stat.S_IFCHR, "b": stat.S_IFBLK}
    table = tuple(mappings)
    for index, device in enumerate(devices):
        path = directory / str(index)
        os.mknod(path, kinds[device.kind] | device.mode, os.makedev(device.major, device.minor))
        path.chmod(device.mode)
        os.chown(path, outside(device.uid, table), outside(device.gid, table))


def outside(inside: int, mappings: Sequence[IdMapping]) -> int:
    """An id of the container as the node has it; one that is not mapped becomes the container's root."""
    for entry in mappings:
        if entry.has(inside):
            return entry.host_id + inside - entry.container_id
    return outside(0, mappings) if inside else 0
