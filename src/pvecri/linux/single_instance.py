# SPDX-License-Identifier: Apache-2.0
"""One instance per lock file and socket, and taking both over from an instance that was killed.

A process that is killed between fork(2) and execve(2) of a child leaves that child with its descriptors: for some
milliseconds the dead process seems to have its lock and to listen.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

LINGER = 2.0
"""Seconds for which a lock or a listener may be that of such a child; after them it is a living process's."""

CLAIMS = Path("/run/pvecri.claims")
"""A file for each name that is claimed; for the node's root alone."""

_POLL_INTERVAL = 0.02


async def lock(fd: int) -> bool:
    """flock(2) a file until `fd` is closed; False if another process has the lock for longer than LINGER."""
    return await _soon(lambda: _locks(fd))


async def remove_stale_socket(path: Path) -> bool:
    """Unlink a Unix socket without a listener. Idempotent; False if a process listens for longer than LINGER."""
    if not await _soon(lambda: not listens(path)):
        return False
    if path.is_socket():
        path.unlink(missing_ok=True)
    return True


@dataclass(frozen=True)
class Claim:
    """A name that this process has, until `close` or its end."""

    path: Path
    fd: int

    def close(self) -> None:
        """Give the name back."""
        self.path.unlink(missing_ok=True)  # before the lock is gone: afterwards it may be another one's
        os.close(self.fd)


async def claim(name: str) -> Claim | None:
    """Claim a name on this machine; None if another process has it for longer than LINGER.

    By a lock, not by an abstract Unix socket: a pod in the node's network could take the name of that.
    """
    CLAIMS.mkdir(mode=0o700, exist_ok=True)
    path = CLAIMS / name
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not await lock(fd):
            os.close(fd)
            return None
        if os.fstat(fd).st_nlink:
            return Claim(path, fd)
        os.close(fd)  # the one before has given the name back meanwhile, and its file is gone


def claimed(name: str) -> bool:
    """Whether a process has claimed a name."""
    try:
        fd = os.open(CLAIMS / name, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not _locks(fd)
    finally:
        os.close(fd)


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


def listens(path: Path) -> bool:
    """Whether a process listens on the unix socket `path`."""
    if not path.is_socket():
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))  # refused if no process listens, though the file exists
        except (ConnectionRefusedError, FileNotFoundError):
            return False
    return True
