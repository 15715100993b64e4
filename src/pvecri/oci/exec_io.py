# SPDX-License-Identifier: Apache-2.0
"""Copying between a client's streams and an exec's pipes or terminal.

Unbuffered: while the client reads no output, none is read from the command, which then blocks on its full pipe.
"""

from __future__ import annotations

import asyncio
import os
import tty
from collections.abc import Callable, Coroutine
from types import TracebackType

from pvecri.linux.fds import AsyncFd, open_pipe
from pvecri.streaming.streams import CommandStreams, Sink, Sizes, Source


class ExecIO:
    """An async context with a copy task for each stream; leaving it cancels the tasks and closes all descriptors.

    Open the streams first, start the command with the descriptors, then call `close_child_ends`.
    """

    def __init__(self) -> None:
        self._ours: list[AsyncFd] = []
        self._theirs: list[int] = []
        self._outputs: list[asyncio.Task[None]] = []
        self._pipes: list[AsyncFd] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> ExecIO:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for fd in self._ours:
            fd.close()
        self.close_child_ends()

    def stdin(self, source: Source | None) -> int:
        """The command's end of a pipe that is fed by the client; /dev/null without a client's stream."""
        if source is None:
            return asyncio.subprocess.DEVNULL
        theirs, fd = open_pipe()
        ours = self._own(fd, theirs)
        self._start(_write_and_close(source, ours))
        return theirs

    def output(self, sink: Sink | None) -> int:
        """The command's end of a pipe that the client reads; /dev/null without a client's stream."""
        if sink is None:
            return asyncio.subprocess.DEVNULL
        fd, theirs = open_pipe()
        ours = self._own(fd, theirs)
        self._pipes.append(ours)
        self._outputs.append(self._start(_read_to_end(ours, sink)))
        return theirs

    def terminal(self, streams: CommandStreams) -> int:
        """The slave of a pty whose master is copied to and from the client."""
        fd, theirs = os.openpty()
        ours = self._own(fd, theirs)
        # Raw: the line discipline is that of the command's own pty in the container. With runc, but not crun, this
        # one still adds CR to NL: runc sets OPOST here, and clears ONLCR on the command's once that is running.
        tty.setraw(theirs)
        self._outputs.append(self._start(_read_to_end(ours, streams.stdout)))
        if streams.stdin is not None:
            self._start(_write(streams.stdin, ours))
        if streams.sizes is not None:
            self._start(follow_size(streams.sizes, ours.resize))
        return theirs

    def close_child_ends(self) -> None:
        """Close the command's descriptors here once it has inherited them: else no EOF follows. Idempotent."""
        while self._theirs:
            os.close(self._theirs.pop())

    async def drain(self) -> None:
        """Return once the client has all output of the command, which has ended.

        A background process may still have a pipe open: only what is in the pipe now is read. A terminal is read
        to its EOF, which follows the end of the command's session.
        """
        # Not to their EOF: `sh -c "sleep 1000 &"` ends at once, but its child has the pipe open.
        for pipe in self._pipes:
            pipe.end_when_empty()
        await asyncio.gather(*self._outputs)

    def _own(self, fd: int, theirs: int) -> AsyncFd:
        ours = AsyncFd(fd)
        self._ours.append(ours)
        self._theirs.append(theirs)
        return ours

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.append(task)
        return task


async def _write(source: Source, fd: AsyncFd) -> None:
    """Copy to EOF; after the command has closed its end, the client's data is discarded."""
    open_ = True
    while data := await source.read():
        if open_:
            try:
                await fd.write(data)
            except BrokenPipeError:
                open_ = False


async def _write_and_close(source: Source, fd: AsyncFd) -> None:
    await _write(source, fd)
    fd.close()


async def _read_to_end(fd: AsyncFd, sink: Sink | None) -> None:
    """Copy to EOF; after the client has left, the output is discarded."""
    while data := await fd.read():
        try:
            if sink is not None:
                await sink.write(data)
        except BrokenPipeError:
            sink = None


async def follow_size(sizes: Sizes, resize: Callable[[int, int], None]) -> None:
    """Call `resize` with columns and rows for each size of the client's terminal."""
    while (size := await sizes.next()) is not None:
        resize(size.columns, size.rows)
