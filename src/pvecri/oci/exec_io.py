# SPDX-License-Identifier: Apache-2.0
"""The bytes between a client's streams and a command's pipes or terminal.

Nothing is buffered here: while the client takes no output, none is read, and what writes it blocks in the kernel.
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
    """Every stream in a task of its own, between entering and leaving; leaving closes all.

    The copying can begin before the command does: it finds its ends ready.
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
        self.command_started()

    def stdin(self, source: Source | None) -> int:
        """The command's end of a pipe that the client writes to, or of nothing."""
        if source is None:
            return asyncio.subprocess.DEVNULL
        theirs, fd = open_pipe()
        ours = self._own(fd, theirs)
        self._begin(_write_and_close(source, ours))
        return theirs

    def output(self, sink: Sink | None) -> int:
        """The command's end of a pipe that the client reads, or of nothing."""
        if sink is None:
            return asyncio.subprocess.DEVNULL
        fd, theirs = open_pipe()
        ours = self._own(fd, theirs)
        self._pipes.append(ours)
        self._outputs.append(self._begin(_read_to_end(ours, sink)))
        return theirs

    def terminal(self, streams: CommandStreams) -> int:
        """The command's side of a pty whose other side is the client's."""
        fd, theirs = os.openpty()
        ours = self._own(fd, theirs)
        # What echoes and edits lines is the command's own terminal, in the container. runc, but not crun, has this
        # one put the CR before each NL: it sets OPOST here, and clears ONLCR in the command's as soon as it can.
        tty.setraw(theirs)
        self._outputs.append(self._begin(_read_to_end(ours, streams.stdout)))
        if streams.stdin is not None:
            self._begin(_write(streams.stdin, ours))
        if streams.sizes is not None:
            self._begin(follow_size(streams.sizes, ours.resize))
        return theirs

    def command_started(self) -> None:
        """The command has its ends: close ours of them, so that its end is seen. Idempotent."""
        while self._theirs:
            os.close(self._theirs.pop())

    async def command_ended(self) -> None:
        """Return when the client has been given all that the command wrote.

        A process that it left behind may still hold a pipe: what that writes later belongs to nobody. A terminal
        ends by itself, and only then has given everything.
        """
        for pipe in self._pipes:
            pipe.end_when_empty()
        await asyncio.gather(*self._outputs)

    def _own(self, fd: int, theirs: int) -> AsyncFd:
        ours = AsyncFd(fd)
        self._ours.append(ours)
        self._theirs.append(theirs)
        return ours

    def _begin(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.append(task)
        return task


async def _write(source: Source, fd: AsyncFd) -> None:
    """Until the client's end, or until nobody reads any more: then what still comes is dropped."""
    taken = True
    while data := await source.read():
        if taken:
            try:
                await fd.write(data)
            except BrokenPipeError:
                taken = False


async def _write_and_close(source: Source, fd: AsyncFd) -> None:
    await _write(source, fd)
    fd.close()


async def _read_to_end(fd: AsyncFd, sink: Sink | None) -> None:
    """All that the command writes; when the client takes no more, it is dropped."""
    while data := await fd.read():
        try:
            if sink is not None:
                await sink.write(data)
        except BrokenPipeError:
            sink = None


async def follow_size(sizes: Sizes, resize: Callable[[int, int], None]) -> None:
    """Call `resize` with columns and rows whenever the client's terminal changes."""
    while (size := await sizes.next()) is not None:
        resize(size.columns, size.rows)
