# SPDX-License-Identifier: Apache-2.0
"""Processes: pidfds to hold and signal them, and what /proc says of them."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


class Process:
    """A process held by a pidfd: its number cannot come to mean another process.

    The process need not be our child. `close` lets it go and does not end it.
    """

    def __init__(self, pid: int) -> None:
        """Take hold of process `pid`; ProcessLookupError when there is none."""
        self.pid = pid
        self._fd = os.pidfd_open(pid)
        self._exited: asyncio.Future[None] | None = None

    def send(self, number: int) -> bool:
        """Send a signal; False when the process has ended already."""
        try:
            signal.pidfd_send_signal(self._fd, number)
        except ProcessLookupError:
            return False
        return True

    @property
    def alive(self) -> bool:
        """Whether it has not ended. A zombie has ended."""
        if self._fd < 0:
            return False
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        return state not in "ZX" and self.send(0)

    async def wait(self) -> None:
        """Return when the process has ended; any number of tasks may wait."""
        if self._exited is None:
            loop = asyncio.get_running_loop()
            self._exited = loop.create_future()
            loop.add_reader(self._fd, self._on_exit)
        await asyncio.shield(self._exited)

    def _on_exit(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        if self._exited is not None and not self._exited.done():
            self._exited.set_result(None)

    def close(self) -> None:
        """Let go of the process. Idempotent."""
        if self._fd < 0:
            return
        if self._exited is not None and not self._exited.done():
            asyncio.get_running_loop().remove_reader(self._fd)
            self._exited.cancel()
        os.close(self._fd)
        self._fd = -1


def status(pid: int) -> dict[str, str]:
    """/proc/PID/status as a dictionary; empty when the process is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


def stop_tree(pid: int) -> list[int]:
    """SIGSTOP a process and all that descend from it, parents first, so that none can escape by forking.

    Their numbers; those that are gone meanwhile are left out.
    """
    try:
        os.kill(pid, signal.SIGSTOP)
    except ProcessLookupError:
        return []
    return [pid, *(each for child in children(pid) for each in stop_tree(child))]


def descendants(pid: int) -> list[int]:
    """All that descend from a process now, parents first; also those that have ended and are not yet collected."""
    return [each for child in children(pid) for each in (child, *descendants(child))]


def children(pid: int) -> list[int]:
    """The children of a process; none when it is gone."""
    found: list[int] = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in list(Path(f"/proc/{pid}/task").iterdir()):
            with suppress(FileNotFoundError, ProcessLookupError):
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def command_name(pid: int) -> str:
    """/proc/PID/comm: the first 15 bytes of the program's name; empty when the process is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def set_oom_score_adj(pid: int, score: int) -> None:
    """How soon the kernel ends a process if memory runs out, -1000 (never) to 1000 (proc_pid_oom_score_adj(5)).

    A process that has ended is fine, and so is a score that only CAP_SYS_RESOURCE may set: then it stays.
    """
    with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(score))


def command_line(pid: int) -> list[str]:
    """/proc/PID/cmdline: the program's arguments, its name first; empty when the process is gone."""
    try:
        text = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.split("\0")[:-1]


def with_variable(name: str) -> dict[int, str]:
    """The value of an environment variable in each process that was started with it. Reads all of /proc."""
    found = {}
    prefix = f"{name}=".encode()
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            for variable in entry.read_bytes().split(b"\0"):
                if variable.startswith(prefix):
                    found[int(entry.parts[2])] = variable.removeprefix(prefix).decode(errors="replace")
    return found


def innermost_pid(pid: int) -> int:
    """The number of process `pid` in its own pid namespace; 0 when it is gone."""
    return int(status(pid).get("NSpid", "0").split()[-1])


def start_ticks(pid: int) -> int:
    """When the process began, in clock ticks since boot: with the pid, its identity. 0 when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(stat.rpartition(")")[2].split()[19])


def open_files(pid: int) -> tuple[int, int]:
    """How many file descriptors a process has, and how many of them are sockets; zeros when it is gone."""
    targets = list(_descriptors(pid))
    return len(targets), sum(target.startswith("socket:") for target in targets)


def _descriptors(pid: int) -> Iterator[str]:
    """What each file descriptor of a process refers to, as /proc/PID/fd shows it; empty if it was closed."""
    directory = f"/proc/{pid}/fd"
    with suppress(FileNotFoundError, ProcessLookupError):
        for number in os.listdir(directory):  # noqa: PTH208, thousands of them in some processes
            try:
                yield os.readlink(f"{directory}/{number}")  # noqa: PTH115
            except (FileNotFoundError, ProcessLookupError):
                yield ""


def open_pipes(pid: int) -> set[int]:
    """The inodes of the pipes that a process has open; empty if it is gone."""
    return {int(target[6:-1]) for target in _descriptors(pid) if target.startswith("pipe:[")}


def open_files_limit(pid: int) -> int | None:
    """The soft limit of a process's file descriptors; None when there is none, or no such process."""
    try:
        limit, _ = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    except ProcessLookupError:
        return None
    return None if limit == resource.RLIM_INFINITY else limit
