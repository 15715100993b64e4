# SPDX-License-Identifier: Apache-2.0
"""The streams between a client and what it talks to, and the bounds on what is held of them.

What runs a command or forwards a port sees Source and Sink. A PeerStream is both, at this end of a connection: the
connection feeds it, up to LIMIT bytes, and then reads no more from the client until there is room again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Protocol

from pvecri.streaming.errors import ProtocolError
from pvecri.streaming.remotecommand import SizeReader, TerminalSize

log = logging.getLogger(__name__)

LIMIT = 64 << 10
"""Bytes of a stream from the client that are held before its connection is no longer read."""

CHUNK_COST = 64
"""What a chunk counts besides its bytes, so that many small ones are bounded as well."""


class Source(Protocol):
    """Where bytes come from."""

    async def read(self) -> bytes:
        """The next bytes; empty at the end."""
        ...


class Sink(Protocol):
    """Where bytes go."""

    async def write(self, data: bytes) -> None:
        """Return when there is room for more; BrokenPipeError when nobody takes them any more."""
        ...


class Sizes(Protocol):
    """The sizes that a terminal takes on."""

    async def next(self) -> TerminalSize | None:
        """Wait for the next size; None when no more come."""
        ...


@dataclass(frozen=True)
class CommandStreams:
    """A command's side of its client; None for what the client did not ask for."""

    stdin: Source | None = None
    stdout: Sink | None = None
    stderr: Sink | None = None
    sizes: Sizes | None = None


class Activity:
    """When anything but a heartbeat last passed over a connection."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def touch(self) -> None:
        """Now."""
        self._last = time.monotonic()

    async def wait_idle(self, seconds: float) -> None:
        """Return when nothing has passed for so long."""
        while (left := self._last + seconds - time.monotonic()) > 0:
            await asyncio.sleep(left)


class Carrier(Protocol):
    """What a stream needs of the connection that carries it."""

    async def send(self, stream: int, data: bytes) -> None:
        """Send bytes of a stream and return when the connection takes more; BrokenPipeError when it is gone."""
        ...

    async def send_end(self, stream: int) -> None:
        """Say that no more comes on a stream, as far as the protocol can. BrokenPipeError when it is gone."""
        ...


class PeerStream:
    """One stream of a connection with a client: `number` is its number, or its channel's, there."""

    def __init__(self, number: int, carrier: Carrier, activity: Activity) -> None:
        self.number = number
        self._carrier = carrier
        self._activity = activity
        self._chunks: deque[bytes] = deque()
        self._held = 0
        self._at_end = False  # the client sends no more
        self._reset = False
        self._finished = False  # we send no more
        self._discarding = False
        self._readable = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    # -- for what runs the command or forwards the port ------------------------------------------------------

    async def read(self) -> bytes:
        """As Source has it."""
        await self._readable.wait()
        if not self._chunks:
            return b""
        data = self._chunks.popleft()
        self._held -= len(data) + CHUNK_COST
        self._signal()
        return data

    async def write(self, data: bytes) -> None:
        """As Sink has it."""
        if self._reset or self._finished:
            raise BrokenPipeError(f"stream {self.number} is closed")
        self._activity.touch()
        await self._carrier.send(self.number, data)

    async def finish(self) -> None:
        """Say that no more is written. Idempotent; nothing happens when the client is gone."""
        if self._finished or self._reset:
            return
        self._finished = True
        try:
            await self._carrier.send_end(self.number)
        except BrokenPipeError:
            self._reset = True

    def discard(self) -> None:
        """Drop what has come and what will: nobody reads it. Idempotent."""
        self._discarding = True
        self._chunks.clear()
        self._held = 0
        self._signal()

    @property
    def was_reset(self) -> bool:
        """Whether the client ended it in both directions."""
        return self._reset

    # -- for the connection ----------------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether more may be fed."""
        return self._room.is_set()

    async def wait_for_room(self, gone: Callable[[], Coroutine[None, None, None]]) -> None:
        """Wait until more may be fed; BrokenPipeError when `gone` returns first: the client has left."""
        if self.has_room:
            return
        waits = {asyncio.create_task(self._wait_for_room()), asyncio.create_task(gone())}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if not self.has_room:
            raise BrokenPipeError("the client is gone")

    async def _wait_for_room(self) -> None:
        await self._room.wait()

    def feed(self, data: bytes) -> None:
        """Take bytes from the client."""
        self._activity.touch()
        if not self._discarding and not self._at_end:
            self._chunks.append(data)
            self._held += len(data) + CHUNK_COST
        self._signal()

    def feed_end(self) -> None:
        """No more come from the client. Idempotent."""
        self._at_end = True
        self._signal()

    def reset(self) -> None:
        """The client ended the stream in both directions, or is gone. Idempotent."""
        self._reset = True
        self.feed_end()

    def _signal(self) -> None:
        _set(self._readable, bool(self._chunks) or self._at_end)
        _set(self._room, self._held < LIMIT or self._reset)


def _set(event: asyncio.Event, value: bool) -> None:
    if value:
        event.set()
    else:
        event.clear()


class PeerSizes:
    """The resize stream of a client, as Sizes has it."""

    def __init__(self, stream: PeerStream) -> None:
        self._stream = stream
        self._reader = SizeReader()
        self._sizes: deque[TerminalSize] = deque()

    async def next(self) -> TerminalSize | None:
        """As Sizes has it. Of a client that sends something else no more is read."""
        while not self._sizes:
            data = await self._stream.read()
            if not data:
                return None
            try:
                self._sizes.extend(self._reader.receive(data))
            except ProtocolError as error:
                log.info("%s", error)
                self._stream.discard()
                return None
        return self._sizes.popleft()
