# SPDX-License-Identifier: Apache-2.0
"""Ending a command in a container before it ends itself, with all that it began.

Its processes lie in the pod's pid namespace, but the parent of the first of them may lie outside (nsenter). Until
that parent has collected its child the CT cannot end, so the parent is let live to do it, and nothing is stopped
before it is killed: nsenter stops with its child, and would stay so if the daemon died at that moment.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterable
from contextlib import suppress

from pvecri.linux import processes
from pvecri.linux.cgroups import Cgroups

PATIENCE = 5.0
"""Seconds in which a program must have ended whose children were killed."""

ROUND = 0.005
"""Seconds between two rounds of killing: what was killed may have begun something meanwhile."""


async def kill_command(process: asyncio.subprocess.Process, cgroups: Cgroups, group: str) -> None:
    """Kill all that descends from `process`, and all of its sessions in the cgroup; return when it has ended."""
    sessions: set[int] = set()
    ended = asyncio.ensure_future(process.wait())
    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            while process.returncode is None:
                tree = processes.descendants(process.pid)
                if not tree and _begins_nothing_more(process.pid):
                    break
                sessions |= {_session(pid) for pid in tree} - {_session(os.getpid()), -1}
                _kill([*tree, *_members(cgroups.processes(group), sessions)])
                await asyncio.wait([ended], timeout=ROUND)
    if process.returncode is None:
        process.kill()
    await ended
    _kill(_members(cgroups.processes(group), sessions))


def _begins_nothing_more(pid: int) -> bool:
    """Whether a process has no child; it is stopped then, so that it cannot come to have one."""
    try:
        os.kill(pid, signal.SIGSTOP)
        if processes.descendants(pid):
            os.kill(pid, signal.SIGCONT)
            return False
    except ProcessLookupError:
        return False
    return True


def _members(pids: Iterable[int], sessions: set[int]) -> list[int]:
    return [pid for pid in pids if _session(pid) in sessions]


def _session(pid: int) -> int:
    """The session that a process is in; -1 when it is gone."""
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return -1


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
