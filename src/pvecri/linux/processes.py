# SPDX-License-Identifier: Apache-2.0
"""Processes: pidfds, and /proc/PID."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


class Process:
    """A process by its pidfd: signals cannot reach another process that has got its PID since.

    It need not be a child of ours. `close` does not end it.
    """

    def __init__(self, pid: int) -> None:
        """Open a pidfd for process `pid`; ProcessLookupError if there is none."""
        self.pid = pid
        self._fd = os.pidfd_open(pid)
        self._exited: asyncio.Future[None] | None = None

    def send(self, number: int) -> bool:
        """Send a signal; False if the process has ended."""
        try:
            signal.pidfd_send_signal(self._fd, number)
        except ProcessLookupError:
            return False
        return True

    @property
    def alive(self) -> bool:
        """Whether it has not ended. A zombie, which pidfd_send_signal(2) still reaches, has."""
        if self._fd < 0:
            return False
        try:
            # The second field, the command's name in parentheses, may contain blanks and parentheses.
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        return state not in "ZX" and self.send(0)  # the PID may be another process's: ask the pidfd as well

    async def wait(self) -> None:
        """Return once the process has ended; any number of tasks may wait."""
        if self._exited is None:
            loop = asyncio.get_running_loop()
            self._exited = loop.create_future()
            loop.add_reader(self._fd, self._on_exit)
        await asyncio.shield(self._exited)  # a cancelled waiter must not cancel the future of all

    def _on_exit(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        if self._exited is not None and not self._exited.done():
            self._exited.set_result(None)

    def close(self) -> None:
        """Close the pidfd and cancel those who wait. Idempotent."""
        if self._fd < 0:
            return
        if self._exited is not None and not self._exited.done():
            asyncio.get_running_loop().remove_reader(self._fd)
            self._exited.cancel()
        os.close(self._fd)
        self._fd = -1


def boot_time() -> int:
    """When the kernel was booted, to the second: nanoseconds since the epoch (proc_stat(5), btime)."""
    lines = Path("/proc/stat").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("btime "))) * 10**9


def status(pid: int) -> dict[str, str]:
    """/proc/PID/status by key; empty if the process is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


def stop_tree(pid: int) -> list[int]:
    """SIGSTOP a process and its descendants, parents first, so that none escapes by forking; their PIDs."""
    try:
        os.kill(pid, signal.SIGSTOP)
    except ProcessLookupError:
        return []
    # /proc/PID/task/TID/children is complete only for a process that is stopped (proc_tid_children(5)).
    return [pid, *(each for child in children(pid) for each in stop_tree(child))]


def kill_tree(pid: int) -> None:
    """SIGKILL a process and its descendants; none escapes by forking (`stop_tree`). Idempotent."""
    for each in stop_tree(pid):
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """The PIDs of a process's descendants, parents first, zombies included."""
    return [each for child in children(pid) for each in (child, *descendants(child))]


def children(pid: int) -> list[int]:
    """The PIDs of a process's children; none if it is gone."""
    found: list[int] = []
    with suppress(FileNotFoundError, ProcessLookupError):
        # Children are listed by the thread that forked them.
        for task in list(Path(f"/proc/{pid}/task").iterdir()):
            with suppress(FileNotFoundError, ProcessLookupError):
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def command_name(pid: int) -> str:
    """/proc/PID/comm: the first 15 bytes of the program's name; empty if the process is gone."""
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
    """/proc/PID/cmdline: argv; empty if the process is gone."""
    try:
        text = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.split("\0")[:-1]


def with_variable(name: str) -> dict[int, str]:
    """The value of an environment variable by the PID of each process that was started with it. Scans /proc."""
    found = {}
    prefix = f"{name}=".encode()
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            for variable in entry.read_bytes().split(b"\0"):
                if variable.startswith(prefix):
                    found[int(entry.parts[2])] = variable.removeprefix(prefix).decode(errors="replace")
    return found


def innermost_pid(pid: int) -> int:
    """The PID of a process in its own PID namespace (NSpid); 0 if it is gone."""
    return int(status(pid).get("NSpid", "0").split()[-1])


def pid_at(pid: int, depth: int) -> int:
    """The PID of a process in a PID namespace `depth` levels below ours (NSpid); 0 if it has none there."""
    numbers = status(pid).get("NSpid", "").split()
    return int(numbers[depth]) if len(numbers) > depth else 0


def parent(pid: int) -> int:
    """The PID of a process's parent; 0 if it is gone or its parent is outside of our PID namespace."""
    return int(status(pid).get("PPid", "0"))


def open_files(pid: int) -> tuple[int, int]:
    """The number of a process's open descriptors, and of sockets among them; zeros if it is gone."""
    targets = list(_descriptors(pid))
    return len(targets), sum(target.startswith("socket:") for target in targets)


def _descriptors(pid: int) -> Iterator[str]:
    """What each file descriptor of a process refers to, as /proc/PID/fd shows it; empty if it was closed."""
    directory = f"/proc/{pid}/fd"
    with suppress(FileNotFoundError, ProcessLookupError):
        for number in os.listdir(directory):  # noqa: PTH208, some processes have thousands
            try:
                yield os.readlink(f"{directory}/{number}")  # noqa: PTH115
            except (FileNotFoundError, ProcessLookupError):
                yield ""


def open_pipes(pid: int) -> set[int]:
    """The inodes of the pipes that a process has open; empty if it is gone."""
    return {int(target[6:-1]) for target in _descriptors(pid) if target.startswith("pipe:[")}


def open_files_limit(pid: int) -> int | None:
    """A process's soft RLIMIT_NOFILE; None if it is unlimited or the process is gone."""
    try:
        limit, _ = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    except ProcessLookupError:
        return None
    return None if limit == resource.RLIM_INFINITY else limit
