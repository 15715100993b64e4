# SPDX-License-Identifier: Apache-2.0
"""A SPDY connection over a transport: I/O for the codec in spdy."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from pvecri.streaming.errors import ProtocolError
from pvecri.streaming.spdy import (
    DataReceived,
    Event,
    GoAwayReceived,
    PingReceived,
    Role,
    SpdyCodec,
    StreamFinished,
    StreamOpened,
    StreamRefused,
    StreamReplied,
    StreamReset,
)
from pvecri.streaming.spdy_frames import GoAwayStatus, ResetStatus
from pvecri.streaming.spdy_headers import Headers
from pvecri.streaming.streams import Activity, PeerStream
from pvecri.streaming.transport import Transport

OnStream = Callable[[PeerStream, Headers], bool]
"""Called for each stream that the client opens; returns False to refuse it."""


class SpdyConnection:
    """The server's side of a connection. Streams are accepted while `run` runs."""

    def __init__(self, transport: Transport, activity: Activity, on_stream: OnStream) -> None:
        self._transport = transport
        self._activity = activity
        self._on_stream = on_stream
        self._codec = SpdyCodec(Role.SERVER)
        self._streams: dict[int, PeerStream] = {}

    async def run(self) -> None:
        """Read until the client disconnects; ProtocolError if it violates the protocol. Resets all streams."""
        try:
            while data := await self._transport.read():
                for event in self._codec.receive(data):
                    if isinstance(event, GoAwayReceived):
                        return  # moby/spdystream sends it when it closes
                    await self._handle(event)
        except BrokenPipeError:
            return
        except ProtocolError:
            await self._send_goaway(GoAwayStatus.PROTOCOL_ERROR)
            raise
        finally:
            for stream in self._streams.values():
                stream.reset()

    async def _handle(self, event: Event) -> None:
        match event:
            case DataReceived(number, payload):
                await self._deliver(number, payload)
            case StreamOpened(number, headers):
                await self._open(number, headers)
            case StreamFinished(number):
                if number in self._streams:
                    self._streams[number].feed_end()
            case StreamReset(number):
                if number in self._streams:
                    self._streams.pop(number).reset()
            case StreamRefused(number, status):
                await self._transport.write(self._codec.reset(number, status))
            case PingReceived(number):
                await self._transport.write(self._codec.ping(number))
            case StreamReplied() | GoAwayReceived():
                pass
        self._drop_closed()

    async def _open(self, number: int, headers: Headers) -> None:
        stream = PeerStream(number, self, self._activity)
        # SYN_REPLY must come before data: no other task runs until it is in the writer's buffer.
        if self._on_stream(stream, headers):
            self._streams[number] = stream
            await self._transport.write(self._codec.reply(number))
        else:
            await self._transport.write(self._codec.reset(number, ResetStatus.REFUSED_STREAM))

    async def _deliver(self, number: int, payload: bytes) -> None:
        """Feed a stream; if it is full, reading of the whole connection waits (decision 0031)."""
        stream = self._streams.get(number)
        if stream is None:
            return
        await stream.wait_for_room(self._transport.gone)
        stream.feed(payload)

    def _drop_closed(self) -> None:
        if len(self._streams) > len(self._codec.streams):
            still_open = set(self._codec.streams)
            self._streams = {number: stream for number, stream in self._streams.items() if number in still_open}

    async def send(self, stream: int, data: bytes) -> None:
        """See Carrier."""
        await self._transport.write(self._codec.data(stream, data))

    async def send_end(self, stream: int) -> None:
        """See Carrier."""
        await self._transport.write(self._codec.data(stream, b"", fin=True))

    async def send_reset(self, stream: int) -> None:
        """See Carrier."""
        if stream in self._codec.streams:  # else both sides have half-closed it
            await self._transport.write(self._codec.reset(stream, ResetStatus.CANCEL))

    async def close(self) -> None:
        """Send GOAWAY, and close once the client has received everything. Not while `run` runs."""
        await self._send_goaway(GoAwayStatus.OK)
        await self._transport.close()

    async def _send_goaway(self, status: GoAwayStatus) -> None:
        with suppress(BrokenPipeError):
            await self._transport.write(self._codec.go_away(status))
