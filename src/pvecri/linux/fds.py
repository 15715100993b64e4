# SPDX-License-Identifier: Apache-2.0
"""Pipes and ptys in the event loop, without a buffer of our own: what nobody reads stays in the kernel."""

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
"""Bytes read at once: half of a pipe."""

STDIO_MODE = 0o666
"""Of the pipes that are a container's standard streams."""


class AsyncFd:
    """An end of a pipe, or the master of a pty, that this owns. One task may read and one may write at a time."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._wake = asyncio.Event()
        self._ends_when_empty = False
        os.set_blocking(fd, False)

    async def read(self, size: int = CHUNK) -> bytes:
        """The next bytes, as soon as there are any; empty at the end."""
        loop = asyncio.get_running_loop()
        while (data := self._read_now(size)) is None:
            if self._ends_when_empty:
                return b""
            self._wake.clear()
            await _ready(self.fd, self._wake, loop.add_reader, loop.remove_reader)
        return data

    def end_when_empty(self) -> None:
        """Have what is in the pipe now read to its end, though a process may still have its other side open."""
        self._ends_when_empty = True
        self._wake.set()

    def _read_now(self, size: int) -> bytes | None:
        """As `read`, but None when there is nothing to read now."""
        try:
            return os.read(self.fd, size)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno != errno.EIO:  # how a pty says that no process has its other side open
                raise
            return b""

    async def write(self, data: bytes) -> None:
        """Write all of `data`; BrokenPipeError when nobody reads any more."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self.fd, view) :]
            except BlockingIOError:
                loop = asyncio.get_running_loop()
                await _ready(self.fd, asyncio.Event(), loop.add_writer, loop.remove_writer)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from None

    def resize(self, columns: int, rows: int) -> None:
        """Set a pty's size; the foreground processes are told by SIGWINCH."""
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("=HHHH", rows, columns, 0, 0))

    def close(self) -> None:
        """Close it; nobody may be waiting on it. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def open_pipe() -> tuple[int, int]:
    """A pipe for the standard streams of a container's command: the end to read from, then the one to write to.

    Any user of the container may open it by name (`/dev/stdout`, `/proc/self/fd/1`), as newer conmons have it: a
    pipe is its maker's otherwise, the node's root's, mode 0600.
    """
    reading, writing = os.pipe()
    os.fchmod(writing, STDIO_MODE)
    return reading, writing


class Pipe:
    """A pipe whose reading end, `ours`, stays here; a context that closes what is open of it."""

    def __init__(self) -> None:
        reading, self.theirs = open_pipe()
        self.ours = AsyncFd(reading)

    def __enter__(self) -> Pipe:
        return self

    def started(self) -> None:
        """The program has its end: close it here, so that its end is seen. Idempotent."""
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
    """Return when a socket's peer has gone, also while data that came before is unread.

    With `half` it is enough that the peer sends no more.
    """
    with select.epoll() as watch:
        watch.register(socket_fd, select.EPOLLRDHUP if half else 0)  # a full hang-up is always reported
        await readable(watch.fileno())
