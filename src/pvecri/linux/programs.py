# SPDX-License-Identifier: Apache-2.0
"""Running a program to its end: with a timeout, bounded output, and nothing left of it if it is ended early.

The program gets a session of its own. On a timeout, too much output or a cancellation these are killed: the
program, its descendants, its session, and whatever has its stdout or stderr open. The last finds a child that
called setsid(2) and whose parent has ended: nothing else shows whose child it was, and its pipe would stay open.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from pvecri.concurrency import all_of, finish
from pvecri.errors import CommandError, DeadlineExceeded
from pvecri.linux import processes
from pvecri.linux.fds import AsyncFd, Pipe

log = logging.getLogger(__name__)

STDOUT_LIMIT: Final = 16 << 20
STDERR_LIMIT: Final = 64 << 10
_KILL_ROUNDS: Final = 10
_KILL_PAUSE: Final = 0.05
"""Seconds between two rounds of SIGKILL."""


@dataclass(frozen=True)
class Ended:
    """A program that has ended; `returncode` is negative for a signal, as in subprocess."""

    name: str
    returncode: int
    stdout: bytes
    stderr: str

    def checked(self) -> Ended:
        """This, if the program succeeded; else CommandError with its stderr, or its stdout if that is empty."""
        if self.returncode != 0:
            output = self.stderr.strip() or self.stdout[-STDERR_LIMIT:].decode(errors="replace")
            raise CommandError(self.name, self.returncode, output)
        return self


async def run(
    command: Sequence[str | Path],
    *,
    timeout: float,
    name: str | None = None,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    stdout_limit: int = STDOUT_LIMIT,
) -> Ended:
    """Run a program until it has ended and nothing has its stdout or stderr open any more.

    `name` is its name in errors, `timeout` is in seconds. Raises DeadlineExceeded, CommandError for more than
    `stdout_limit` bytes, and OSError if it cannot be executed; the caller checks its status. Of stderr the last
    STDERR_LIMIT bytes are kept.
    """
    name = name or Path(command[0]).name
    output, errors = bytearray(), bytearray()
    with os.fdopen(os.memfd_create("stdin"), "w+b") as source, Pipe() as stdout, Pipe() as stderr:
        source.write(stdin)  # a file needs no writer that waits for the program, as a pipe would
        source.seek(0)
        child = _start(command, source, stdout.theirs, stderr.theirs, env)
        stdout.started()
        stderr.started()
        process = processes.Process(child.pid)
        begin = time.monotonic()
        try:
            async with asyncio.timeout(timeout):
                await all_of(
                    (_read_head(name, stdout.ours, output, stdout_limit), _read_tail(stderr.ours, errors))
                )
                await process.wait()
        except BaseException as error:
            # In a thread, for it scans /proc and sleeps; `finish`, for a second cancellation must not leave
            # processes.
            await finish(asyncio.to_thread(_kill, name, child, (stdout.ours, stderr.ours)))
            if isinstance(error, TimeoutError):
                message = errors.decode(errors="replace").strip() or "no output"
                raise DeadlineExceeded(f"{name} was killed after {timeout:g} s: {message}") from None
            raise
        finally:
            process.close()
        ended = Ended(name, child.wait(), bytes(output), errors.decode(errors="replace"))
        seconds = time.monotonic() - begin
        log.debug("%s: process %d ended with status %d after %.3f s", name, child.pid, ended.returncode, seconds)
        return ended


def _start(
    command: Sequence[str | Path], stdin: IO[bytes], stdout: int, stderr: int, env: Mapping[str, str] | None
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=stderr, env=env, start_new_session=True)


def run_blocking(command: Sequence[str | Path], *, timeout: float, name: str | None = None) -> Ended:
    """As `run`, for a worker thread, which gets an event loop for the time."""
    return asyncio.run(run(command, timeout=timeout, name=name))


async def _read_head(name: str, stdout: AsyncFd, kept: bytearray, limit: int) -> None:
    while chunk := await stdout.read():
        kept += chunk
        if len(kept) > limit:
            raise CommandError(name, -signal.SIGKILL, f"it wrote more than {limit} bytes to stdout")


async def _read_tail(stderr: AsyncFd, kept: bytearray) -> None:
    while chunk := await stderr.read():
        kept += chunk
        del kept[:-STDERR_LIMIT]


def _kill(name: str, child: subprocess.Popen[bytes], outputs: Sequence[AsyncFd]) -> None:
    """Kill a program and all that it has started, and reap it. Blocks for half a second at most.

    The program is reaped last: as a zombie it keeps its pid, the session's ID, from being reused.
    """
    pipes = {os.fstat(output.fd).st_ino for output in outputs}
    # One round is not enough: a process that forks while /proc is being read escapes it.
    for _ in range(_KILL_ROUNDS):
        pids = [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]
        started = [pid for pid in pids if _was_started(pid, child.pid, pipes)]
        for root in (child.pid, *started):
            processes.kill_tree(root)
        if not started and os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            break
        time.sleep(_KILL_PAUSE)
    else:  # in uninterruptible sleep
        log.warning("%s or a child of it has been killed and does not end: process %d", name, child.pid)
    child.poll()


def _was_started(pid: int, session: int, pipes: set[int]) -> bool:
    """Whether a process that runs is in a session, or has one of the pipes open."""
    try:
        state, _, _, sid, *_ = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if pid in {session, os.getpid()} or state in "ZX":
            return False
        # Between fork(2) and execve(2) a child of another thread of ours has copies of all descriptors.
        return int(sid) == session or (
            not pipes.isdisjoint(processes.open_pipes(pid))
            and processes.command_line(pid) != processes.command_line(os.getpid())
        )
    except OSError:  # it has ended meanwhile
        return False
