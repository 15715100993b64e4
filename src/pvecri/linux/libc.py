# SPDX-License-Identifier: Apache-2.0
"""The C library, for the system calls that Python's standard library does not have.

Arguments go to ctypes as they are: an int as a C int, bytes as a pointer, None as NULL; wrap others (c_ulong).
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

# None is the running program, which has libc loaded. use_errno: ctypes saves errno per thread right after the
# call, before anything else of the interpreter can overwrite it.
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long  # ctypes assumes int, which would cut off 64-bit results


def call(name: str, *arguments: object, path: str | Path = "") -> int:
    """Call a libc function that returns -1 and sets errno if it fails: OSError with `path`."""
    result: int = getattr(_libc, name)(*arguments)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path) or name)
    return result


def syscall(number: int, *arguments: object, path: str | Path = "") -> int:
    """As `call`, for a system call that libc has no function for."""
    return call("syscall", ctypes.c_long(number), *arguments, path=path or f"syscall {number}")


_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8


def keep_little_memory() -> None:
    """Have malloc(3) use one heap for all threads, and return large buffers once they are freed.

    By default glibc gives each thread a heap of its own, and what is free in one serves no other. And it raises
    the size of buffers that it returns to 32 MiB with the first such buffer: later ones come from the heap, which
    stays as large as it ever was. Without effect in another libc.
    """
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_MMAP_THRESHOLD, 1 << 20)
        _libc.mallopt(_M_ARENA_MAX, 1)
