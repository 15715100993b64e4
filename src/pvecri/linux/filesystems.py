# SPDX-License-Identifier: Apache-2.0
"""Filesystems and block devices as df(1) and lsblk(8) show them: names and sizes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pvecri.linux import mounts

_DEVICES = Path("/sys/dev/block")


@dataclass(frozen=True, slots=True)
class Filesystem:
    """`device` is the mount's source, `size` in bytes, `inodes` 0 if unlimited."""

    device: str
    size: int
    inodes: int
    inodes_free: int


def filesystem(path: Path) -> Filesystem:
    """The filesystem that `path` is on; OSError if it does not exist."""
    found = os.statvfs(path)
    return Filesystem(
        device=_source(path.resolve()),
        size=found.f_blocks * found.f_frsize,
        inodes=found.f_files,
        inodes_free=found.f_ffree,
    )


@lru_cache(maxsize=16)
def _source(path: Path) -> str:
    """The source of the mount that `path` is on. Cached: the paths asked for are roots of storage in use."""
    holding = [mount for mount in mounts.mounts() if path.is_relative_to(mount.mountpoint)]
    return max(holding, key=lambda mount: (len(mount.mountpoint.parts), mount.mount_id)).source


def block_device(major: int, minor: int) -> str:
    """A block device's path such as `/dev/sda`; `MAJOR:MINOR` if sysfs has no name for it."""
    link = _DEVICES / f"{major}:{minor}"
    try:
        return f"/dev/{link.readlink().name}"
    except OSError:
        return f"{major}:{minor}"
