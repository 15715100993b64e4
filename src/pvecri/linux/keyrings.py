# SPDX-License-Identifier: Apache-2.0
"""Session keyrings (session-keyring(7)) for programs that we start.

An OCI runtime gives each container a session keyring of its own, which the kernel charges to the container's
root. That is one user for all CTs that share Proxmox's ID range, and an ordinary user may have 200 keys
(`kernel.keys.maxkeys`): with so many containers on a node, or one that makes as many keys, no container would
start and no exec would run in any of them. A keyring that the daemon makes is charged to the node's root, who
may have 1,000,000.
"""

from __future__ import annotations

import asyncio
import platform
import types
from asyncio.subprocess import Process
from collections.abc import Generator
from functools import partial
from typing import Any, Final

from pvecri.linux import libc

_SYS_KEYCTL: Final = {"x86_64": 250, "aarch64": 219, "riscv64": 219, "armv7l": 311, "i686": 288}
_KEYCTL_JOIN_SESSION_KEYRING: Final = 1

SUPPORTED: Final = platform.machine() in _SYS_KEYCTL
"""Whether the number of keyctl(2) is known on this architecture."""


def join_new_session_keyring() -> None:
    """Give the calling thread an empty session keyring that nobody else has; what it starts inherits it."""
    libc.syscall(_SYS_KEYCTL[platform.machine()], _KEYCTL_JOIN_SESSION_KEYRING, None)


@types.coroutine
def start(*command: str, **options: Any) -> Generator[Any, Any, Process]:
    """asyncio.create_subprocess_exec for a program that gets an empty session keyring to itself.

    A thread's keyring is inherited by fork(2), and asyncio forks before its coroutine first waits. So the
    coroutine is taken to that point by hand: no other program can be started with this one's keyring in between.
    """
    if not SUPPORTED:
        return (yield from asyncio.create_subprocess_exec(*command, **options).__await__())
    starting = asyncio.create_subprocess_exec(*command, **options).__await__()
    join_new_session_keyring()
    try:
        waits_for = next(starting)
    finally:
        join_new_session_keyring()
    return (yield from _rest(starting, waits_for))


def _rest(starting: Generator[Any, None, Process], waits_for: Any) -> Generator[Any, Any, Process]:
    """What `yield from starting` does, for a generator that waits already."""
    while True:
        try:
            yield waits_for
        except BaseException as error:  # a cancellation is the coroutine's to handle
            step = partial(starting.throw, error)
        else:
            step = partial(next, starting)
        try:
            waits_for = step()
        except StopIteration as done:
            process: Process = done.value
            return process
