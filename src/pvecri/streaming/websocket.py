# SPDX-License-Identifier: Apache-2.0
"""WebSocket connections over a transport (RFC 6455, by wsproto), and Kubernetes' protocols in their messages."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from wsproto import WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from pvecri.streaming import channels
from pvecri.streaming.channels import ChannelClosed, ChannelData, ChannelReader, Framing
from pvecri.streaming.errors import ProtocolError
from pvecri.streaming.streams import Activity, PeerStream
from pvecri.streaming.transport import Transport

NORMAL_CLOSURE = 1000
PROTOCOL_ERROR = 1002


@dataclass(frozen=True)
class Fragment:
    """A fragment of a message, `finished` for the last one. Text is in UTF-8."""

    data: bytes
    finished: bool


class WebSocket:
    """The server's side, after the handshake. Any number of tasks may send, one may receive."""

    def __init__(self, transport: Transport, connection: WSConnection) -> None:
        self._transport = transport
        self._connection = connection
        self._fragments: deque[Fragment] = deque()

    async def receive(self) -> Fragment | None:
        """The next fragment; None if the client has gone, ProtocolError if it violates the protocol."""
        while not self._fragments:
            for event in self._parse(await self._transport.read()):
                if not await self._handle(event):
                    return None
        return self._fragments.popleft()

    def _parse(self, data: bytes) -> Iterator[Event]:
        """wsproto's events; a CloseConnection for empty data, which is EOF."""
        try:
            self._connection.receive_data(data or None)
            yield from self._connection.events()
        except (RemoteProtocolError, LocalProtocolError) as error:
            raise ProtocolError(f"WebSocket: {error}") from None

    async def _handle(self, event: Event) -> bool:
        """Handle an event; False if the client has closed the connection."""
        match event:  # Pong is ignored
            case BytesMessage():
                self._fragments.append(Fragment(bytes(event.data), event.message_finished))
            case TextMessage():
                self._fragments.append(Fragment(event.data.encode(), event.message_finished))
            case Ping():
                await self._transport.write(self._connection.send(event.response()))
            case CloseConnection():
                with suppress(BrokenPipeError, LocalProtocolError):
                    await self._transport.write(self._connection.send(event.response()))
                return False
        return True

    async def send(self, data: bytes, *, text: bool = False) -> None:
        """Send one message; BrokenPipeError if the client has gone."""
        message: Event = TextMessage(data.decode()) if text else BytesMessage(data)
        try:
            frame = self._connection.send(message)
        # wsproto refuses to send after a close frame, whoever sent it.
        except LocalProtocolError as error:
            raise BrokenPipeError("the connection is closing") from error
        await self._transport.write(frame)

    async def gone(self) -> None:
        """Return once the client has gone, even while received data is unread."""
        await self._transport.gone()

    async def close(self, code: int = NORMAL_CLOSURE) -> None:
        """Send a close frame, and close once the client has received everything. Not during `receive`."""
        if self._connection.state is ConnectionState.OPEN:
            with suppress(BrokenPipeError, LocalProtocolError):
                await self._transport.write(self._connection.send(CloseConnection(code)))
        await self._transport.close()


class WebSocketTransport:
    """A byte stream in binary messages: the transport of SPDY that is tunnelled through a WebSocket."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket

    async def read(self) -> bytes:
        """See Transport. Empty messages are ignored."""
        while (fragment := await self._websocket.receive()) is not None:
            if fragment.data:
                return fragment.data
        return b""

    async def write(self, data: bytes) -> None:
        """See Transport."""
        if data:
            await self._websocket.send(data)

    async def gone(self) -> None:
        """See Transport."""
        await self._websocket.gone()

    async def close(self) -> None:
        """See Transport."""
        await self._websocket.close()


class ChannelConnection:
    """A connection with one PeerStream per channel."""

    def __init__(self, websocket: WebSocket, activity: Activity, framing: Framing, count: int) -> None:
        """`count` is the number of channels."""
        self._websocket = websocket
        self._framing = framing
        self._reader = ChannelReader(framing, count)
        self.streams = [PeerStream(number, self, activity) for number in range(count)]

    async def run(self) -> None:
        """Read until the client disconnects; ProtocolError if it violates the protocol. Resets all streams."""
        try:
            while (fragment := await self._websocket.receive()) is not None:
                for event in self._reader.receive(fragment.data, finished=fragment.finished):
                    await self._handle(event)
        except BrokenPipeError:
            return
        finally:
            for stream in self.streams:
                stream.reset()

    async def _handle(self, event: channels.ChannelEvent) -> None:
        stream = self.streams[event.channel]
        match event:
            case ChannelData(_, payload):
                await stream.wait_for_room(self._websocket.gone)
                stream.feed(payload)
            case ChannelClosed():
                stream.feed_end()

    async def send(self, stream: int, data: bytes) -> None:
        """See Carrier."""
        await self._websocket.send(channels.encode(self._framing, stream, data), text=self._framing.base64)

    async def send_end(self, stream: int) -> None:
        """See Carrier. A server cannot half-close a channel: it closes the whole connection."""

    async def send_reset(self, stream: int) -> None:
        """See Carrier. A channel cannot be reset either."""

    async def close(self) -> None:
        """Send a close frame, and close once the client has received everything. Not while `run` runs."""
        await self._websocket.close()
