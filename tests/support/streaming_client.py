# SPDX-License-Identifier: Apache-2.0
"""Clients of the streaming server, blocking, over SPDY and over WebSocket."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

import h11
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)

from pvecri.streaming import channels, spdy
from pvecri.streaming.remotecommand import CHANNELS, WEBSOCKET_VERSIONS, StreamType
from pvecri.streaming.spdy_frames import ResetStatus

TIMEOUT = 30.0
"""Seconds of silence after which a test gives up."""

SPDY_COMMANDS = ("v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io")
Headers = dict[str, str]


class Refused(Exception):
    """The server answered with a status and a text in place of the upgrade."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


def dial(url: str) -> socket.socket:
    """A connection to the URL's server; of a TLS server the certificate is not checked."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = socket.create_connection((parts.hostname, parts.port or 0), timeout=TIMEOUT)
    if parts.scheme == "https":
        return ssl._create_unverified_context().wrap_socket(connection)
    return connection


def request(connection: socket.socket, url: str, headers: Sequence[tuple[str, str]], method: str = "POST") -> Any:
    """Send a request that asks for an upgrade; (headers of the answer, what came after it). Refused."""
    http = h11.Connection(h11.CLIENT)
    fields = [("host", urlsplit(url).netloc), ("connection", "Upgrade"), *headers]
    connection.sendall(http.send(h11.Request(method=method, target=urlsplit(url).path, headers=fields)) or b"")
    connection.sendall(http.send(h11.EndOfMessage()) or b"")
    text, status = b"", 0
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(connection.recv(1 << 16))
        elif isinstance(event, h11.InformationalResponse):
            return dict(event.headers), http.trailing_data[0]
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            text += event.data
        else:
            raise Refused(status, text.decode())


class SpdyClient:
    """A SPDY connection. What has come of each stream is in `received`, by the stream's number."""

    def __init__(self, url: str, protocols: Sequence[str]) -> None:
        self.connection = dial(url)
        headers = [("upgrade", "SPDY/3.1"), *(("x-stream-protocol-version", name) for name in protocols)]
        try:
            answer, rest = request(self.connection, url, headers)
        except BaseException:
            self.connection.close()
            raise
        self.protocol = answer[b"x-stream-protocol-version"].decode()
        self._setup(rest)

    def _setup(self, rest: bytes) -> None:
        self.codec = spdy.SpdyCodec(spdy.Role.CLIENT)
        self.received: dict[int, bytearray] = defaultdict(bytearray)
        self.ended: set[int] = set()
        self.resets: set[int] = set()
        self.replied: set[int] = set()
        self.closed = False
        self._lock = threading.Lock()
        self._take(rest)

    def open(self, **headers: str) -> int:
        """Open a stream and wait until it is accepted, or refused: then it is in `ended`."""
        with self._lock:
            stream, data = self.codec.open(headers)
        self.send_raw(data)
        self.wait(lambda: stream in self.replied | self.ended)
        return stream

    def send(self, stream: int, data: bytes = b"", *, fin: bool = False) -> None:
        """Send bytes of a stream; `fin` with the last."""
        self.send_raw(self.codec.data(stream, data, fin=fin))

    def reset(self, stream: int) -> None:
        """End a stream both ways."""
        self.send_raw(self.codec.reset(stream, ResetStatus.CANCEL))

    def send_raw(self, data: bytes) -> None:
        """Send bytes of the connection."""
        self.connection.sendall(data)

    def wait(self, until: Callable[[], object]) -> None:
        """Receive until something is true, or the connection ends."""
        while not until() and not self.closed:
            self.receive()

    def receive(self) -> None:
        """Receive something."""
        data = self._read()
        self.closed = not data
        self._take(data)

    def _read(self) -> bytes:
        try:
            return self.connection.recv(1 << 16)
        except (ConnectionResetError, ssl.SSLEOFError):
            return b""

    def _take(self, data: bytes) -> None:
        with self._lock:
            for event in self.codec.receive(data):
                match event:
                    case spdy.DataReceived(stream, payload):
                        self.received[stream] += payload
                    case spdy.StreamFinished(stream):
                        self.ended.add(stream)
                    case spdy.StreamReset(stream):
                        self.ended.add(stream)
                        self.resets.add(stream)
                    case spdy.StreamReplied(stream):
                        self.replied.add(stream)

    def close(self) -> None:
        """Leave without a word."""
        self.connection.close()


class WebSocketClient:
    """A WebSocket connection. `take` gets each message, as bytes."""

    def __init__(self, url: str, protocols: Sequence[str], take: Callable[[bytes], None]) -> None:
        self._take = take
        self.connection = dial(url)
        self.websocket = WSConnection(ConnectionType.CLIENT)
        self.protocol: str | None = None
        self.closed = False
        self.close_code: int | None = None
        self._message = b""
        hello = Request(
            urlsplit(url).netloc, urlsplit(url).path, subprotocols=[name for name in protocols if name]
        )
        self.connection.sendall(self.websocket.send(hello))
        self._accepted = False
        while not self._accepted:
            self.receive()

    def receive(self) -> None:
        """Receive something."""
        try:
            data = self.connection.recv(1 << 16)
        except ConnectionResetError:
            data = b""
        self.closed = self.closed or not data
        with suppress(Exception):
            self.websocket.receive_data(data or None)
        for event in self.websocket.events():
            self._handle(event)

    def _handle(self, event: object) -> None:
        match event:
            case AcceptConnection():
                self.protocol, self._accepted = event.subprotocol, True
            case RejectConnection():
                raise Refused(event.status_code, "")
            case RejectData():
                pass
            case BytesMessage() | TextMessage():
                data = event.data.encode() if isinstance(event.data, str) else bytes(event.data)
                self._message += data
                if event.message_finished:
                    message, self._message = self._message, b""
                    self._take(message)
            case Ping():
                self.connection.sendall(self.websocket.send(event.response()))
            case CloseConnection():
                self.closed, self.close_code = True, event.code

    def wait(self, until: Callable[[], object]) -> None:
        """Receive until something is true, or the connection ends."""
        while not until() and not self.closed:
            self.receive()

    def send(self, message: bytes, *, text: bool = False) -> None:
        """Send a message."""
        event = TextMessage(message.decode()) if text else BytesMessage(message)
        self.connection.sendall(self.websocket.send(event))

    def close(self) -> None:
        """Leave without a word."""
        self.connection.close()


class TunnelClient(SpdyClient):
    """SPDY in the messages of a WebSocket."""

    def __init__(self, url: str, protocol: str) -> None:
        self._incoming = bytearray()
        self._websocket = WebSocketClient(url, [protocol], self._put)
        self.connection = self._websocket.connection
        self.protocol = self._websocket.protocol or ""
        self._setup(b"")

    def send_raw(self, data: bytes) -> None:
        """As SpdyClient has it."""
        self._websocket.send(data)

    def _put(self, message: bytes) -> None:
        self._incoming += message

    def _read(self) -> bytes:
        self._websocket.wait(lambda: self._incoming)
        data = bytes(self._incoming)
        self._incoming.clear()
        return data


@dataclass(frozen=True)
class Outcome:
    """What a command wrote and how it ended: the status as the error stream had it."""

    stdout: bytes
    stderr: bytes
    status: bytes

    @property
    def exit_code(self) -> int:
        """The command's."""
        status = json.loads(self.status)
        if status["status"] == "Success":
            return 0
        return int(status["details"]["causes"][0]["message"])


class CommandClient(Protocol):
    """Exec or Attach, over either protocol."""

    protocol: str | None

    def __init__(self, url: str, *streams: StreamType) -> None: ...

    @property
    def connection(self) -> socket.socket:
        """What lies below."""
        ...

    def send(self, kind: StreamType, data: bytes) -> None:
        """Send bytes of stdin or resize."""

    def finish(self, kind: StreamType) -> None:
        """Send no more of it."""

    def got(self, kind: StreamType) -> bytes:
        """What has come of a stream."""

    def wait_for(self, kind: StreamType, text: bytes) -> None:
        """Receive until a stream has had this text."""

    def outcome(self) -> Outcome:
        """Receive until the command has ended and the server has said so."""

    def leave(self) -> None:
        """Close the connection without a word."""


class SpdyCommand:
    """See CommandClient."""

    def __init__(self, url: str, *streams: StreamType, protocols: Sequence[str] = SPDY_COMMANDS) -> None:
        self.client = SpdyClient(url, protocols)
        self.protocol: str | None = self.client.protocol
        self.numbers = {kind: self.client.open(streamtype=kind.value) for kind in (StreamType.ERROR, *streams)}

    def send(self, kind: StreamType, data: bytes) -> None:
        self.client.send(self.numbers[kind], data)

    def finish(self, kind: StreamType) -> None:
        self.client.send(self.numbers[kind], fin=True)

    def got(self, kind: StreamType) -> bytes:
        return bytes(self.client.received[self.numbers[kind]]) if kind in self.numbers else b""

    def wait_for(self, kind: StreamType, text: bytes) -> None:
        self.client.wait(lambda: text in self.got(kind))
        assert text in self.got(kind), self.got(kind)

    def outcome(self) -> Outcome:
        self.client.wait(lambda: set(self.numbers.values()) <= self.client.ended)
        result = Outcome(self.got(StreamType.STDOUT), self.got(StreamType.STDERR), self.got(StreamType.ERROR))
        self.client.close()
        return result

    def leave(self) -> None:
        self.client.close()

    @property
    def connection(self) -> socket.socket:
        return self.client.connection


class WebSocketCommand:
    """See CommandClient."""

    def __init__(self, url: str, *streams: StreamType, protocols: Sequence[str] = ("v5.channel.k8s.io",)) -> None:
        # The server takes the client's first choice.
        self.framing = next(each.framing for each in WEBSOCKET_VERSIONS if each.name == protocols[0])
        self._reader = channels.ChannelReader(self.framing, len(CHANNELS))
        self._received: dict[int, bytearray] = defaultdict(bytearray)
        self.client = WebSocketClient(url, protocols, self._take)
        self.protocol = self.client.protocol

    def _take(self, message: bytes) -> None:
        for event in self._reader.receive(message, finished=True):
            if isinstance(event, channels.ChannelData):
                self._received[event.channel] += event.payload

    def send(self, kind: StreamType, data: bytes) -> None:
        message = channels.encode(self.framing, CHANNELS.index(kind), data)
        self.client.send(message, text=self.framing.base64)

    def finish(self, kind: StreamType) -> None:
        self.client.send(bytes((channels.CLOSE, CHANNELS.index(kind))))

    def got(self, kind: StreamType) -> bytes:
        return bytes(self._received[CHANNELS.index(kind)])

    def wait_for(self, kind: StreamType, text: bytes) -> None:
        self.client.wait(lambda: text in self.got(kind))
        assert text in self.got(kind), self.got(kind)

    def outcome(self) -> Outcome:
        self.client.wait(lambda: False)
        self.client.close()
        return Outcome(self.got(StreamType.STDOUT), self.got(StreamType.STDERR), self.got(StreamType.ERROR))

    def leave(self) -> None:
        self.client.close()

    @property
    def connection(self) -> socket.socket:
        return self.client.connection


TRANSPORTS: dict[str, type[CommandClient]] = {"SPDY": SpdyCommand, "WebSocket": WebSocketCommand}
