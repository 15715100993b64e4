# SPDX-License-Identifier: Apache-2.0
"""A SPDY connection over a transport: the codec put to work."""

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
"""Told of each stream that the client opens; False to refuse it."""


class SpdyConnection:
    """The server's end. Streams are answered while `run` runs."""

    def __init__(self, transport: Transport, activity: Activity, on_stream: OnStream) -> None:
        self._transport = transport
        self._activity = activity
        self._on_stream = on_stream
        self._codec = SpdyCodec(Role.SERVER)
        self._streams: dict[int, PeerStream] = {}

    async def run(self) -> None:
        """Read until the client leaves; ProtocolError when it breaks the protocol. All streams have ended then."""
        try:
            while data := await self._transport.read():
                for event in self._codec.receive(data):
                    if isinstance(event, GoAwayReceived):
                        return
                    await self._handle(event)
        except BrokenPipeError:
            return
        except ProtocolError:
            await self._say_goodbye(GoAwayStatus.PROTOCOL_ERROR)
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
        self._forget_closed()

    async def _open(self, number: int, headers: Headers) -> None:
        stream = PeerStream(number, self, self._activity)
        if self._on_stream(stream, headers):
            self._streams[number] = stream
            await self._transport.write(self._codec.reply(number))
        else:
            await self._transport.write(self._codec.reset(number, ResetStatus.REFUSED_STREAM))

    async def _deliver(self, number: int, payload: bytes) -> None:
        """Hand over bytes; when they are one stream's too many, wait, and with it all of the connection."""
        stream = self._streams.get(number)
        if stream is None:
            return
        await stream.wait_for_room(self._transport.gone)
        stream.feed(payload)

    def _forget_closed(self) -> None:
        if len(self._streams) > len(self._codec.streams):
            still_open = set(self._codec.streams)
            self._streams = {number: stream for number, stream in self._streams.items() if number in still_open}

    async def send(self, stream: int, data: bytes) -> None:
        """As Carrier has it."""
        await self._transport.write(self._codec.data(stream, data))

    async def send_end(self, stream: int) -> None:
        """As Carrier has it."""
        await self._transport.write(self._codec.data(stream, b"", fin=True))

    async def close(self) -> None:
        """Say goodbye, and close when the client has everything. Not while `run` runs."""
        await self._say_goodbye(GoAwayStatus.OK)
        await self._transport.close()

    async def _say_goodbye(self, status: GoAwayStatus) -> None:
        with suppress(BrokenPipeError):
            await self._transport.write(self._codec.go_away(status))
