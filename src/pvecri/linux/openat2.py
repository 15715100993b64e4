# SPDX-License-Identifier: Apache-2.0
"""Opening files below an untrusted root: openat2(2)."""

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
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10
_RETRY_TIMEOUT = 5.0
"""Seconds of retries on EAGAIN."""


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_in_root(root: Path, path: str, flags: int = os.O_RDONLY, mode: int = 0) -> int:
    """open(2) as a process whose root directory is `root` would call it; returns a new descriptor.

    Symbolic links, absolute ones too, and `..` resolve below `root`.
    """
    base = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # RESOLVE_IN_ROOT with a `..` fails with EAGAIN if anything on the node was renamed or mounted meanwhile.
        deadline = time.monotonic() + _RETRY_TIMEOUT
        while time.monotonic() < deadline:
            with suppress(BlockingIOError):
                return _openat2(base, path, flags, mode)
            os.sched_yield()
        return _openat2(base, path, flags, mode)
    finally:
        os.close(base)


def open_without_links(base: int, path: str, flags: int = os.O_RDONLY) -> int:
    """open(2) of a path below the directory `base`, a descriptor; returns a new one.

    OSError ELOOP if any component is a symbolic link, EXDEV if the path leads out of `base`.
    """
    return _openat2(base, path, flags, 0, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)


# RESOLVE_IN_ROOT implies RESOLVE_NO_MAGICLINKS (/proc/PID/root) for now only, says openat2(2).
_IN_ROOT = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS


def _openat2(base: int, path: str, flags: int, mode: int, resolve: int = _IN_ROOT) -> int:
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    return libc.syscall(
        SYS_OPENAT2, base, os.fsencode(path), ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how)), path=path
    )


def read_in_root(root: Path, path: str, limit: int = 1 << 20) -> str:
    """The text of a regular file below `root`, at most `limit` bytes; empty if there is none."""
    try:
        # An image may have a FIFO or a terminal there: do not block, and acquire no controlling terminal.
        fd = open_in_root(root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return ""
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return ""
        return os.pread(fd, limit, 0).decode(errors="replace")
    finally:
        os.close(fd)
