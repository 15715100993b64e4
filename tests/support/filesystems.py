# SPDX-License-Identifier: Apache-2.0
"""Filesystems in files, on loop devices that are gone with them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.processes import need

from pvecri.linux import loop, mounts


@contextmanager
def btrfs_filesystem(directory: Path) -> Iterator[Path]:
    """A btrfs filesystem, mounted in a directory that mapped roots can pass."""
    need("mkfs.btrfs", "btrfs-progs")
    file, place = directory / "btrfs.image", directory / "btrfs"
    place.mkdir()
    with file.open("wb") as image:
        image.truncate(2 << 30)
    subprocess.run(["mkfs.btrfs", "--quiet", str(file)], check=True)
    try:
        with loop.attached(file, readonly=False) as device:
            mounts.mount(device, place, "btrfs")
        place.chmod(0o711)
        yield place
    finally:
        mounts.umount_below(place)
