# SPDX-License-Identifier: Apache-2.0
"""Pipes and ptys in the event loop, unbuffered: unread data stays in the kernel and blocks its writer."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import select
import struct
import termios
from collections.abc import Callable

CHUNK = 32 << 10
"""Bytes per read: half of a pipe's default capacity."""

STDIO_MODE = 0o666
"""The mode of the pipes that are a container's standard streams."""


class AsyncFd:
    """Owns one end of a pipe, or the master of a pty. One task may read and one may write at a time."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._wake = asyncio.Event()
        self._ends_when_empty = False
        os.set_blocking(fd, False)  # this end only: the child's is another file description

    async def read(self, size: int = CHUNK) -> bytes:
        """Wait for data and return up to `size` bytes; empty at EOF."""
        loop = asyncio.get_running_loop()
        while (data := self._read_now(size)) is None:
            if self._ends_when_empty:
                return b""
            self._wake.clear()
            await _ready(self.fd, self._wake, loop.add_reader, loop.remove_reader)
        return data

    def end_when_empty(self) -> None:
        """Report EOF once the pipe is empty, even if a process still has its write end open."""
        self._ends_when_empty = True
        self._wake.set()

    def _read_now(self, size: int) -> bytes | None:
        """As `read` without waiting; None if there is no data."""
        try:
            return os.read(self.fd, size)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno != errno.EIO:  # a pty's master after the last close of its slave
                raise
            return b""

    async def write(self, data: bytes) -> None:
        """Write all of `data`; BrokenPipeError if the other end is closed."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self.fd, view) :]
            except BlockingIOError:
                loop = asyncio.get_running_loop()
                await _ready(self.fd, asyncio.Event(), loop.add_writer, loop.remove_writer)
            except OSError as error:
                if error.errno != errno.EIO:  # as in read
                    raise
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from None

    def resize(self, columns: int, rows: int) -> None:
        """Set a pty's window size; the kernel sends SIGWINCH to the foreground process group."""
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("=HHHH", rows, columns, 0, 0))

    def close(self) -> None:
        """Close the descriptor, on which no task may be waiting. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def open_pipe() -> tuple[int, int]:
    """A pipe for a standard stream of a container's command: its read end and its write end.

    With mode 0666, which newer versions of conmon set as well, any user of the container may reopen it
    (`/dev/stdout`, `/proc/self/fd/1`). A new pipe is its creator's, the node's root's, with mode 0600.
    """
    reading, writing = os.pipe()
    os.fchmod(writing, STDIO_MODE)
    return reading, writing


class Pipe:
    """A pipe for a child's output: `ours` is the read end, `theirs` the child's. A context that closes both."""

    def __init__(self) -> None:
        reading, self.theirs = open_pipe()
        self.ours = AsyncFd(reading)

    def __enter__(self) -> Pipe:
        return self

    def started(self) -> None:
        """Close the child's end here once it has inherited it: else `ours` never reaches EOF. Idempotent."""
        if self.theirs >= 0:
            os.close(self.theirs)
            self.theirs = -1

    def __exit__(self, *_: object) -> None:
        self.started()
        self.ours.close()


async def readable(fd: int) -> None:
    """Return when there is something to read from `fd`, or its end."""
    loop = asyncio.get_running_loop()
    await _ready(fd, asyncio.Event(), loop.add_reader, loop.remove_reader)


async def _ready(fd: int, ready: asyncio.Event, add: Callable[..., None], remove: Callable[[int], bool]) -> None:
    add(fd, ready.set)
    try:
        await ready.wait()
    finally:
        remove(fd)


async def peer_gone(socket_fd: int, *, half: bool = True) -> None:
    """Return once a socket's peer has closed it, even while received data is unread.

    With `half` a shutdown of the peer's sending side is enough.
    """
    # An epoll of its own, watched by the loop: asyncio has no EPOLLRDHUP, and a read would consume data.
    with select.epoll() as watch:
        watch.register(socket_fd, select.EPOLLRDHUP if half else 0)  # EPOLLHUP is always reported
        await readable(watch.fileno())
