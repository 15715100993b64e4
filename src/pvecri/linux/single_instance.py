# SPDX-License-Identifier: Apache-2.0
"""Taking over from a process that was killed: its lock and its socket.

A process that is killed while it starts another one leaves a child that has its open files, until the child calls
execve(2): some milliseconds in which the dead process seems to hold its lock and to listen.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import time
from collections.abc import Callable
from pathlib import Path

LINGER = 2.0
"""Seconds after which whoever holds a thing is taken for a living process."""

_PAUSE = 0.02


async def lock(fd: int) -> bool:
    """Lock a file, flock(2), until `fd` is closed; False when another process holds it and keeps it."""
    return await _soon(lambda: _locks(fd))


async def remove_stale_socket(path: Path) -> bool:
    """Remove a socket on which nobody listens any more. Idempotent; False when a process goes on listening."""
    if not await _soon(lambda: not _listens(path)):
        return False
    if path.is_socket():
        path.unlink(missing_ok=True)
    return True


async def _soon(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + LINGER
    while not (met := condition()) and time.monotonic() < deadline:
        await asyncio.sleep(_PAUSE)
    return met


def _locks(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _listens(path: Path) -> bool:
    if not path.is_socket():
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
    return True
