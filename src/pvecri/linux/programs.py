# SPDX-License-Identifier: Apache-2.0
"""Running a program to its end: with a timeout, bounded output, and nothing left of it when it is ended early.

`run` is for the event loop, `run_blocking` for worker threads; both do the same. The program gets a session of its
own. On a timeout, too much output or a cancellation these are killed: the program, its descendants, its session,
and whatever has its stdout or stderr open. The last catches a child that called setsid(2) and whose parent has
ended: nothing else tells whose child it was, and it would keep the pipe from ever reaching its end.
"""

from __future__ import annotations

import asyncio
import logging
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pvecri.concurrency import all_of, finish
from pvecri.errors import CommandError, DeadlineExceeded
from pvecri.linux import processes
from pvecri.linux.fds import AsyncFd

log = logging.getLogger(__name__)

STDOUT_LIMIT: Final = 16 << 20
STDERR_LIMIT: Final = 64 << 10
_CHUNK: Final = 64 << 10
_KILL_ROUNDS: Final = 10
_KILL_PAUSE: Final = 0.05
"""Seconds between two rounds: 10 of them are what SIGKILL gets to act."""


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


class _Running:
    """A started program. It stays a zombie until `reap`, so that its pid, the session's ID, is not reused."""

    def __init__(self, name: str, child: subprocess.Popen[bytes], stdout: int, stderr: int, limit: int) -> None:
        self.name = name
        self.child = child
        self.stdout, self.stderr = stdout, stderr
        self._limit = limit
        self._kept = {stdout: bytearray(), stderr: bytearray()}
        self._pipes = {os.fstat(fd).st_ino for fd in (stdout, stderr)}

    def received(self, fd: int, chunk: bytes) -> None:
        """Keep a chunk of output. CommandError if stdout exceeds the limit; of stderr the end is kept."""
        kept = self._kept[fd]
        kept += chunk
        if fd == self.stderr:
            del kept[:-STDERR_LIMIT]
        elif len(kept) > self._limit:
            raise CommandError(self.name, -signal.SIGKILL, f"it wrote more than {self._limit} bytes to stdout")

    def reap(self) -> Ended:
        stderr = self._kept[self.stderr].decode(errors="replace")
        return Ended(self.name, self.child.wait(), bytes(self._kept[self.stdout]), stderr)

    def timed_out(self, timeout: float) -> DeadlineExceeded:
        stderr = self._kept[self.stderr].decode(errors="replace").strip()
        return DeadlineExceeded(f"{self.name} was killed after {timeout:g} s: {stderr or 'no output'}")

    def kill(self) -> None:
        """Kill the program and what it has started, and reap it. Blocks for half a second at most.

        A process in uninterruptible sleep outlives it, but holds nobody up.
        """
        for _ in range(_KILL_ROUNDS):
            roots = [self.child.pid, *(pid for pid in _pids() if self._started(pid))]
            for pid in [each for root in roots for each in processes.stop_tree(root)]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if roots == [self.child.pid] and self._has_ended():
                break
            time.sleep(_KILL_PAUSE)
        else:
            log.warning("%s or a child of it does not end, although killed: process %d", self.name, self.child.pid)
        self.child.poll()

    def _has_ended(self) -> bool:
        return os.waitid(os.P_PID, self.child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _started(self, pid: int) -> bool:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if pid == self.child.pid or fields[0] in "ZX":
                return False
            if int(fields[3]) == self.child.pid:
                return True
            # Another thread's child has copies of all descriptors between fork(2) and execve(2).
            return any(inode in self._pipes for inode in processes.open_pipes(pid)) and not _is_this_program(pid)
        except OSError:  # it has ended meanwhile
            return False


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal() and int(name) != os.getpid())  # noqa: PTH208


def _is_this_program(pid: int) -> bool:
    return processes.command_line(pid) == processes.command_line(os.getpid())


@contextmanager
def _started(
    command: Sequence[str | Path], name: str | None, stdin: bytes, env: Mapping[str, str] | None, limit: int
) -> Iterator[_Running]:
    with ExitStack() as ours, ExitStack() as theirs:
        source = os.open(os.devnull, os.O_RDONLY) if not stdin else os.memfd_create("stdin")
        theirs.callback(os.close, source)
        if stdin:  # a file, unlike a pipe, needs no writer that waits for the program
            with open(source, "wb", closefd=False) as file:
                file.write(stdin)
            os.lseek(source, 0, os.SEEK_SET)
        ends = []
        for _ in range(2):
            reading, writing = os.pipe()
            ours.callback(os.close, reading)
            theirs.callback(os.close, writing)
            ends.append((reading, writing))
        (stdout, child_stdout), (stderr, child_stderr) = ends
        child = subprocess.Popen(
            command, stdin=source, stdout=child_stdout, stderr=child_stderr, env=env, start_new_session=True
        )
        theirs.close()
        yield _Running(name or Path(command[0]).name, child, stdout, stderr, limit)


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

    `name` is what errors call it, `timeout` is in seconds. Raises DeadlineExceeded, CommandError for more than
    `stdout_limit` bytes, and OSError if it cannot be executed; its status is for the caller to look at.
    """
    with _started(command, name, stdin, env, stdout_limit) as running:
        try:
            process = processes.Process(running.child.pid)
            try:
                async with asyncio.timeout(timeout):
                    await all_of((_drain(running, running.stdout), _drain(running, running.stderr)))
                    await process.wait()
            finally:
                process.close()
        except BaseException as error:
            await finish(asyncio.to_thread(running.kill))
            if isinstance(error, TimeoutError):
                raise running.timed_out(timeout) from None
            raise
        return running.reap()


async def _drain(running: _Running, fd: int) -> None:
    pipe = AsyncFd(fd)
    while chunk := await pipe.read(_CHUNK):
        running.received(fd, chunk)


def run_blocking(
    command: Sequence[str | Path],
    *,
    timeout: float,
    name: str | None = None,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    stdout_limit: int = STDOUT_LIMIT,
) -> Ended:
    """As `run`, for a worker thread."""
    deadline = time.monotonic() + timeout
    with _started(command, name, stdin, env, stdout_limit) as running, selectors.DefaultSelector() as selector:
        exited = os.pidfd_open(running.child.pid)
        try:
            for fd in (running.stdout, running.stderr, exited):
                selector.register(fd, selectors.EVENT_READ)
            while selector.get_map():
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                if not ready:
                    raise running.timed_out(timeout)
                for key, _ in ready:
                    chunk = b"" if key.fd == exited else os.read(key.fd, _CHUNK)
                    if chunk:
                        running.received(key.fd, chunk)
                    else:
                        selector.unregister(key.fd)
        except BaseException:
            running.kill()
            raise
        finally:
            os.close(exited)
        return running.reap()
