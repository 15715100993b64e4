# SPDX-License-Identifier: Apache-2.0
"""Killing an exec before it exits, with all its processes.

They are in the pod's PID namespace, but the parent of the first one, nsenter, is not. Until nsenter has reaped its
child the CT's namespace cannot end, so nsenter is left alive to do so. Nothing is stopped before it is killed:
nsenter stops itself if its child stops, and would stay stopped if the daemon died at that moment.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterable
from contextlib import suppress

from pvecri.linux import processes
from pvecri.linux.cgroups import Cgroups

EXIT_TIMEOUT = 5.0
"""Seconds for a process to exit after its children were killed."""

KILL_INTERVAL = 0.005
"""Seconds between two rounds of SIGKILL: a process may have forked before it got the signal."""


async def kill_command(process: asyncio.subprocess.Process, cgroups: Cgroups, group: str) -> None:
    """Kill the descendants of `process` and their sessions in the cgroup; return once it has exited."""
    sessions: set[int] = set()
    ended = asyncio.ensure_future(process.wait())
    with suppress(TimeoutError):
        async with asyncio.timeout(EXIT_TIMEOUT):
            while process.returncode is None:
                tree = processes.descendants(process.pid)
                if not tree and _stop_if_childless(process.pid):
                    break
                # A background process is reparented to the CT's init when its parent dies: then its session alone
                # shows where it came from. nsenter itself is in the daemon's session.
                sessions |= {_session(pid) for pid in tree} - {_session(os.getpid()), -1}
                _kill([*tree, *_members(cgroups.processes(group), sessions)])
                await asyncio.wait([ended], timeout=KILL_INTERVAL)
    if process.returncode is None:
        # Not process.kill(): subprocess polls first, and may reap the child before asyncio's watcher does, which
        # then reports the exit code 255.
        _kill([process.pid])
    await ended
    _kill(_members(cgroups.processes(group), sessions))


def _stop_if_childless(pid: int) -> bool:
    """Whether a process has no children; it is stopped then, so that it cannot fork any."""
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
    """A process's session ID; -1 if it is gone."""
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return -1


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
