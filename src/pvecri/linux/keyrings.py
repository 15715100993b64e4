# SPDX-License-Identifier: Apache-2.0
"""Session keyrings (session-keyring(7)) of child processes.

An OCI runtime gives each container a session keyring, which the kernel charges to the container's root. That is
one UID for all CTs with Proxmox's ID range, and a user may have 200 keys (`kernel.keys.maxkeys`): with 200
containers on a node, or one that creates as many keys, no container would start and no exec would run. A keyring
that the daemon creates is charged to the node's root, who may have 1,000,000.
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
"""Whether the number of keyctl(2) is known here; it has no libc function and differs by architecture."""


def join_new_session_keyring() -> None:
    """Give the calling thread a new anonymous session keyring, which its children inherit."""
    libc.syscall(_SYS_KEYCTL[platform.machine()], _KEYCTL_JOIN_SESSION_KEYRING, None)


@types.coroutine
def start(*command: str, **options: Any) -> Generator[Any, Any, Process]:
    """asyncio.create_subprocess_exec for a program with a session keyring of its own.

    fork(2) copies the thread's keyring, and asyncio forks before its coroutine first suspends. So the coroutine is
    driven to that point by hand: no other program can be started with this one's keyring in between.
    """
    if not SUPPORTED:
        return (yield from asyncio.create_subprocess_exec(*command, **options).__await__())
    starting = asyncio.create_subprocess_exec(*command, **options).__await__()
    join_new_session_keyring()
    try:
        future = next(starting)
    finally:
        join_new_session_keyring()  # the next child must not share this one's
    return (yield from _rest(starting, future))


def _rest(starting: Generator[Any, None, Process], future: Any) -> Generator[Any, Any, Process]:
    """`yield from starting`, for a generator that has yielded its first future already."""
    while True:
        try:
            yield future
        except BaseException as error:  # CancelledError among them: the coroutine handles it
            step = partial(starting.throw, error)
        else:
            step = partial(next, starting)
        try:
            future = step()
        except StopIteration as done:
            process: Process = done.value
            return process
