# SPDX-License-Identifier: Apache-2.0
"""Loop devices (loop(4)) that live as long as their mounts. Every function raises OSError."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_CONTROL: Final = Path("/dev/loop-control")
_LOOP_CTL_GET_FREE: Final = 0x4C82
_LOOP_CONFIGURE: Final = 0x4C0A
_LO_FLAGS_READ_ONLY: Final = 1
_LO_FLAGS_AUTOCLEAR: Final = 4
_TRIES: Final = 100


@contextlib.contextmanager
def attached(file: Path, *, readonly: bool) -> Iterator[Path]:
    """A loop device for `file`, which the kernel detaches after the context and the last mount (autoclear)."""
    flags = os.O_RDONLY if readonly else os.O_RDWR
    file_fd = os.open(file, flags | os.O_CLOEXEC)
    try:
        device, device_fd = _configured(file_fd, file, flags)
    finally:
        os.close(file_fd)
    try:
        # The device stays open here: with autoclear the kernel detaches it at the last close, which would be
        # before the mount.
        yield device
    finally:
        os.close(device_fd)


def _configured(file_fd: int, file: Path, flags: int) -> tuple[Path, int]:
    """A configured device, and its descriptor. Another process may configure the free one first: retry (EBUSY)."""
    for _ in range(_TRIES):
        device = _free()
        device_fd = os.open(device, flags | os.O_CLOEXEC)
        try:
            # Linux 5.8; sets file and flags at once, where LOOP_SET_FD and LOOP_SET_STATUS64 leave a gap.
            fcntl.ioctl(device_fd, _LOOP_CONFIGURE, _request(file_fd, file, flags))
        except OSError as error:
            os.close(device_fd)
            if error.errno != errno.EBUSY:
                raise OSError(error.errno, error.strerror, str(file)) from error
        else:
            return device, device_fd
    raise OSError(errno.EBUSY, "no free loop device for", str(file))


def _free() -> Path:
    fd = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        return Path(f"/dev/loop{fcntl.ioctl(fd, _LOOP_CTL_GET_FREE)}")
    finally:
        os.close(fd)


def _request(file_fd: int, file: Path, flags: int) -> bytes:
    """struct loop_config with its struct loop_info64 (linux/loop.h); losetup(8) shows the name."""
    lo_flags = _LO_FLAGS_AUTOCLEAR | (_LO_FLAGS_READ_ONLY if flags == os.O_RDONLY else 0)
    # lo_file_name has 64 bytes with its NUL.
    name = os.fsencode(file)[:63]
    info = struct.pack("=5Q4I64s64s32s2Q", 0, 0, 0, 0, 0, 0, 0, 0, lo_flags, name, b"", b"", 0, 0)
    # Block size 0 is the default, 512 bytes; the end is reserved and must be 0.
    return struct.pack("=II", file_fd, 0) + info + bytes(64)
