# SPDX-License-Identifier: Apache-2.0
"""The C library, for the system calls that Python's standard library does not have."""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: object, path: str = "") -> int:
    """Call a libc function that answers -1 and errno on failure; OSError carries `path`."""
    result: int = getattr(_libc, name)(*arguments)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path or name)
    return result


def syscall(number: int, *arguments: object, path: str = "") -> int:
    """Make a system call that libc has no function for."""
    function = _libc.syscall
    function.restype = ctypes.c_long
    result: int = function(ctypes.c_long(number), *arguments)
    if result == -1:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), path or f"syscall {number}")
    return result
