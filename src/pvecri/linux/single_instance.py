# SPDX-License-Identifier: Apache-2.0
"""One instance per lock file and socket, and taking both over from an instance that was killed.

A process that is killed between fork(2) and execve(2) of a child leaves that child with its descriptors: for some
milliseconds the dead process seems to have its lock and to listen.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import socket
import time
from collections.abc import Callable
from pathlib import Path

LINGER = 2.0
"""Seconds for which a lock or a listener may be that of such a child; after them it is a living process's."""

_POLL_INTERVAL = 0.02


async def lock(fd: int) -> bool:
    """flock(2) a file until `fd` is closed; False if another process has the lock for longer than LINGER."""
    return await _soon(lambda: _locks(fd))


async def remove_stale_socket(path: Path) -> bool:
    """Unlink a Unix socket without a listener. Idempotent; False if a process listens for longer than LINGER."""
    if not await _soon(lambda: not _listens(path)):
        return False
    if path.is_socket():
        path.unlink(missing_ok=True)
    return True


async def claim(name: str) -> socket.socket | None:
    """Claim a name until the socket is closed; None if another process has it for longer than LINGER.

    An abstract Unix socket: nothing is left of it when its process ends.
    """
    claimant = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    if await _soon(lambda: _binds(claimant, name)):
        return claimant
    claimant.close()
    return None


def claimed(name: str) -> bool:
    """Whether a process has claimed a name."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        return not _binds(probe, name)


def _binds(claimant: socket.socket, name: str) -> bool:
    try:
        claimant.bind(f"\0{name}")
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True


async def _soon(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + LINGER
    while not (met := condition()) and time.monotonic() < deadline:
        await asyncio.sleep(_POLL_INTERVAL)
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
            probe.connect(str(path))  # refused if no process listens, though the file exists
        except (ConnectionRefusedError, FileNotFoundError):
            return False
    return True
