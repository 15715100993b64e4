# SPDX-License-Identifier: Apache-2.0
"""Filesystems in files, on loop devices that are gone with them."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from support.processes import need

from pvecri.linux import loop, mounts

EXT4_IOC_SHUTDOWN = 0x8004587D
EXT4_GOING_FLAGS_NOLOGFLUSH = 2
"""linux/ext4.h, as _IOR('X', 125, __u32)."""


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


class FailingFilesystem:
    """An ext4 filesystem at `place` that can be made to fail as after errors of its disk."""

    def __init__(self, place: Path, file: Path) -> None:
        self.place = place
        self._file = file
        self._device = ""

    def mount(self) -> None:
        """Mount it, again after a failure: what was written before that is there."""
        with loop.attached(self._file, readonly=False) as device:
            self._device = device.name
            # As Debian's installer has it: after an error the kernel makes the filesystem read-only.
            mounts.mount(device, self.place, "ext4", 0, "errors=remount-ro")

    def make_read_only(self) -> None:
        """Have the kernel make it read-only (EROFS), as it does after an error of the disk."""
        self._sync()
        Path(f"/sys/fs/ext4/{self._device}/trigger_fs_error").write_text("an error for a test")

    def shut_down(self) -> None:
        """Fail every access to the disk (EIO)."""
        self._sync()
        fd = os.open(self.place, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, struct.pack("=I", EXT4_GOING_FLAGS_NOLOGFLUSH))
        finally:
            os.close(fd)

    def fill(self) -> None:
        """Leave no space, not for root either (ENOSPC). Idempotent."""
        with suppress(OSError), (self.place / "filler").open("ab", buffering=0) as filler:
            while True:
                filler.write(bytes(1 << 20))
        self._sync()

    def empty(self) -> None:
        """Undo `fill`. Idempotent."""
        (self.place / "filler").unlink(missing_ok=True)

    def _sync(self) -> None:
        subprocess.run(["sync", "--file-system", str(self.place)], check=True)

    def repair(self) -> None:
        """Unmount, check and mount it. No process may use it."""
        mounts.umount_below(self.place)
        # 1: errors were corrected
        assert (
            subprocess.run(["e2fsck", "-f", "-y", str(self._file)], check=False, capture_output=True).returncode
            < 2
        )
        self.mount()


@contextmanager
def failing_filesystem(directory: Path) -> Iterator[FailingFilesystem]:
    """A FailingFilesystem, mounted in a directory that mapped roots can pass."""
    file, place = directory / "ext4.image", directory / "failing"
    place.mkdir()
    with file.open("wb") as image:
        image.truncate(256 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(file)], check=True)
    filesystem = FailingFilesystem(place, file)
    try:
        filesystem.mount()
        place.chmod(0o711)
        yield filesystem
    finally:
        mounts.umount_below(place)
