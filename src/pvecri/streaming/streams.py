# SPDX-License-Identifier: Apache-2.0
"""Streams of a client, with bounded buffers.

Commands and port-forwards see a Source and a Sink. A PeerStream is both for one stream of a connection, which
feeds it up to LIMIT bytes and then stops reading from the client until there is room.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from pvecri.streaming.errors import ProtocolError
from pvecri.streaming.remotecommand import SizeReader, TerminalSize

log = logging.getLogger(__name__)

LIMIT = 64 << 10
"""Bytes buffered per stream before its connection is no longer read."""

CHUNK_COST = 64
"""Bytes that a chunk counts in addition, for its own memory, so that many small ones are bounded as well."""


class Source(Protocol):
    """An input stream."""

    async def read(self) -> bytes:
        """The next bytes; empty at EOF."""
        ...


class Sink(Protocol):
    """An output stream."""

    async def write(self, data: bytes) -> None:
        """Write, and return once there is room for more; BrokenPipeError if the reader has gone."""
        ...


class Sizes(Protocol):
    """A terminal's sizes."""

    async def next(self) -> TerminalSize | None:
        """Wait for the next size; None at EOF."""
        ...


@dataclass(frozen=True)
class CommandStreams:
    """The streams of a command; None for those that were not requested."""

    stdin: Source | None = None
    stdout: Sink | None = None
    stderr: Sink | None = None
    sizes: Sizes | None = None


class Activity:
    """The time of the last data, heartbeats excluded, on a connection."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def touch(self) -> None:
        """Record data."""
        self._last = time.monotonic()

    async def wait_idle(self, seconds: float) -> None:
        """Return once there has been no data for `seconds`."""
        while (left := self._last + seconds - time.monotonic()) > 0:
            await asyncio.sleep(left)


class Carrier(Protocol):
    """A connection, as its streams use it."""

    async def send(self, stream: int, data: bytes) -> None:
        """Send data of a stream, and return once there is room; BrokenPipeError if the client has gone."""
        ...

    async def send_end(self, stream: int) -> None:
        """Half-close a stream, if the protocol can. BrokenPipeError if the client has gone."""
        ...

    async def send_reset(self, stream: int) -> None:
        """Reset a stream, if the protocol can. BrokenPipeError if the client has gone."""
        ...


class PeerStream:
    """One stream of a connection with a client; `number` is its SPDY stream ID or its channel."""

    def __init__(self, number: int, carrier: Carrier, activity: Activity) -> None:
        self.number = number
        self._carrier = carrier
        self._activity = activity
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self._at_end = False  # received EOF
        self._reset = False
        self._finished = False  # sent EOF
        self._discarding = False
        self._readable = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    # -- for the command or the port-forward ------------------------------------------------------------------

    async def read(self) -> bytes:
        """See Source."""
        await self._readable.wait()
        if not self._chunks:
            return b""
        data = self._chunks.popleft()
        self._buffered -= len(data) + CHUNK_COST
        self._signal()
        return data

    async def write(self, data: bytes) -> None:
        """See Sink."""
        if self._reset or self._finished:
            raise BrokenPipeError(f"stream {self.number} is closed")
        self._activity.touch()
        await self._carrier.send(self.number, data)

    async def finish(self) -> None:
        """Half-close the stream. Idempotent; does nothing if the client has gone."""
        if self._finished or self._reset:
            return
        self._finished = True
        try:
            await self._carrier.send_end(self.number)
        except BrokenPipeError:
            self._reset = True

    async def abort(self) -> None:
        """Reset the stream: its other end broke off. Idempotent; does nothing if the client has gone."""
        if self._reset:
            return
        self.reset()
        with suppress(BrokenPipeError):
            await self._carrier.send_reset(self.number)

    def discard(self) -> None:
        """Discard buffered and future data. Idempotent."""
        self._discarding = True
        self._chunks.clear()
        self._buffered = 0
        self._signal()

    @property
    def was_reset(self) -> bool:
        """Whether the client has reset the stream or disconnected, or `abort` was called."""
        return self._reset

    # -- for the connection ----------------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether the buffer is below LIMIT."""
        return self._room.is_set()

    async def wait_for_room(self, gone: Callable[[], Coroutine[None, None, None]]) -> None:
        """Wait until `has_room`; BrokenPipeError if `gone` returns first, since the client has disconnected."""
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
        """Buffer data from the client."""
        self._activity.touch()
        # The connection has waited for room before, so LIMIT is exceeded by one piece at most.
        if not self._discarding and not self._at_end:
            self._chunks.append(data)
            self._buffered += len(data) + CHUNK_COST
        self._signal()

    def feed_end(self) -> None:
        """Record EOF from the client. Idempotent."""
        self._at_end = True
        self._signal()

    def reset(self) -> None:
        """Record a reset, or the disconnection of the client. Idempotent."""
        self._reset = True
        self.feed_end()

    def _signal(self) -> None:
        # A reset stream has room: its connection must not wait for a reader that has gone.
        _set(self._readable, bool(self._chunks) or self._at_end)
        _set(self._room, self._buffered < LIMIT or self._reset)


def _set(event: asyncio.Event, value: bool) -> None:
    if value:
        event.set()
    else:
        event.clear()


class PeerSizes:
    """A client's resize stream; see Sizes."""

    def __init__(self, stream: PeerStream) -> None:
        self._stream = stream
        self._reader = SizeReader()
        self._sizes: deque[TerminalSize] = deque()

    async def next(self) -> TerminalSize | None:
        """See Sizes. Malformed input ends the stream: the rest is discarded."""
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
