# SPDX-License-Identifier: Apache-2.0
"""Opening files below a root that is not trusted: openat2(2)."""

from __future__ import annotations

import ctypes
import os
import stat
import time
from contextlib import suppress
from pathlib import Path

from pvecri.linux import libc

SYS_OPENAT2 = 437  # the same number on every architecture
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_IN_ROOT = 0x10
_PATIENCE = 5.0
"""Seconds in which a path must have been walked while the machine's directories keep moving."""


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_in_root(root: Path, path: str, flags: int = os.O_RDONLY, mode: int = 0) -> int:
    """Open `path` as a process whose root directory is `root` would; a new file descriptor.

    Symbolic links, absolute ones too, and `..` stay below `root`. OSError as open(2) has it.
    """
    base = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # The kernel gives up on a `..` while anything on the machine is renamed or mounted, and says: try again.
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            with suppress(BlockingIOError):
                return _openat2(base, path, flags, mode)
            os.sched_yield()
        return _openat2(base, path, flags, mode)
    finally:
        os.close(base)


def _openat2(base: int, path: str, flags: int, mode: int) -> int:
    how = _OpenHow(flags | os.O_CLOEXEC, mode, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    return libc.syscall(
        SYS_OPENAT2, base, os.fsencode(path), ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how)), path=path
    )


def read_in_root(root: Path, path: str, limit: int = 1 << 20) -> str:
    """The text of a regular file below `root`, at most `limit` bytes of it; empty when there is none."""
    try:
        fd = open_in_root(root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return ""
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return ""
        return os.pread(fd, limit, 0).decode(errors="replace")
    finally:
        os.close(fd)
