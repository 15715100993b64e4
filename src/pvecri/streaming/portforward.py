# SPDX-License-Identifier: Apache-2.0
"""PortForward: connections to ports of a pod, each with a data stream and an error stream.

Over SPDY (`portforward.k8s.io`, also tunnelled through a WebSocket) the client opens a pair of streams for each
connection, matched by the headers `streamtype` (error or data), `port` and `requestID`. Over WebSocket channels
(`v4.channel.k8s.io`) each port has one connection: channel 2i is the data and 2i+1 the error of port i, and the
first message on each is the port's number in two bytes, little-endian.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from pvecri.linux.fds import CHUNK
from pvecri.streaming.channels import BINARY, Framing
from pvecri.streaming.requests import ForwardRequest
from pvecri.streaming.session import serve
from pvecri.streaming.spdy_connection import SpdyConnection
from pvecri.streaming.spdy_headers import Headers
from pvecri.streaming.streams import Activity, PeerStream
from pvecri.streaming.transport import Transport
from pvecri.streaming.websocket import ChannelConnection, WebSocket
from pvecri.supervision import describe, report

log = logging.getLogger(__name__)

SPDY_PROTOCOL = "portforward.k8s.io"
TUNNEL_PROTOCOL = "SPDY/3.1+portforward.k8s.io"
CHANNEL_PROTOCOLS = {
    "v4.channel.k8s.io": BINARY,
    "v4.base64.channel.k8s.io": Framing(base64=True),
    "": BINARY,  # for clients that request no subprotocol
}

Connect = Callable[[int], Awaitable[socket.socket]]


async def serve_over_spdy(request: ForwardRequest, transport: Transport, idle_timeout: float) -> None:
    """Forward connections of a SPDY client until it disconnects."""
    activity = Activity()
    pairs = _Pairs(request.connect)
    await serve(SpdyConnection(transport, activity, pairs.add), pairs.run(), activity, idle_timeout)


async def serve_over_channels(
    request: ForwardRequest, framing: Framing, websocket: WebSocket, idle_timeout: float
) -> None:
    """Forward one connection to each port of the request until all are closed or the client disconnects."""
    activity = Activity()
    connection = ChannelConnection(websocket, activity, framing, 2 * len(request.ports))

    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            for index, port in enumerate(request.ports):
                pair = _Pair(port, data=connection.streams[2 * index], error=connection.streams[2 * index + 1])
                group.create_task(_send_port_and_forward(request.connect, pair))

    await serve(connection, work(), activity, idle_timeout)


@dataclass
class _Pair:
    port: int
    data: PeerStream | None = None
    error: PeerStream | None = None


class _Pairs:
    """Pairs the streams of a SPDY connection, and forwards each pair in a task."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._waiting: dict[str, _Pair] = {}
        self._complete: asyncio.Queue[_Pair] = asyncio.Queue()

    def add(self, stream: PeerStream, headers: Headers) -> bool:
        """Add a stream; False to refuse it."""
        kind, port = headers.get("streamtype"), _port(headers.get("port", ""))
        if kind not in {"error", "data"} or port is None:
            return False
        # Old clients send no requestID: they open the error stream, and next the data stream.
        key = headers.get("requestid") or f"stream {stream.number - 2 * (kind == 'data')}"
        pair = self._waiting.setdefault(key, _Pair(port))
        if getattr(pair, kind) is not None or pair.port != port:
            return False
        setattr(pair, kind, stream)
        if pair.data is not None and pair.error is not None:
            self._complete.put_nowait(self._waiting.pop(key))
        return True

    async def run(self) -> None:
        """Forward each complete pair; never returns."""
        async with asyncio.TaskGroup() as group:
            while True:
                pair = await self._complete.get()
                group.create_task(_forward(self._connect, pair), name=f"forward to port {pair.port}")


def _port(text: str) -> int | None:
    return (
        int(text) if text.isascii() and text.isdecimal() and len(text) <= 5 and 0 < int(text) <= 0xFFFF else None
    )


async def _send_port_and_forward(connect: Connect, pair: _Pair) -> None:
    number = pair.port.to_bytes(2, "little")
    for stream in (pair.data, pair.error):
        assert stream is not None
        await stream.write(number)
    await _forward(connect, pair)


async def _forward(connect: Connect, pair: _Pair) -> None:
    """Forward one connection to its end. Errors go to its error stream and affect no other connection."""
    data, error = pair.data, pair.error
    assert data is not None
    assert error is not None
    error.discard()  # clients half-close it at once and send nothing
    try:
        with await connect(pair.port) as connection:
            await _copy(connection, data)
    except ConnectionResetError:
        # Not an error of the port-forward: kubectl before 1.32 ends its session if the error stream has one.
        log.info("port-forward to port %d: the pod reset the connection", pair.port)
        await data.abort()
    except BrokenPipeError:  # the client closed it
        pass
    except OSError as failure:
        log.info("port-forward to port %d: %s", pair.port, failure)
        # The kubelet's wording, which kubectl shows as it comes.
        await _write_last(error, f"error forwarding port {pair.port} to pod: {failure.strerror or failure}")
    except Exception as failure:  # the pod is gone (an answer), or a fault: the other connections go on
        report(failure, "streaming connection", f"port-forward to port {pair.port}")
        await _write_last(error, f"error forwarding port {pair.port} to pod: {describe(failure)}")
    finally:
        data.discard()
        await data.finish()
        await error.finish()


async def _write_last(stream: PeerStream, text: str) -> None:
    try:
        await stream.write(text.encode())
    except BrokenPipeError:
        return


async def _copy(connection: socket.socket, stream: PeerStream) -> None:
    """Copy in both directions until both are at EOF, which is propagated as a half-close.

    ConnectionResetError if the pod reset the connection, after what it had sent before has been copied;
    BrokenPipeError if the client closed it.
    """
    sending = asyncio.create_task(_to_pod(stream, connection))
    receiving = asyncio.create_task(_to_client(connection, stream))
    tasks = (sending, receiving)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)  # EOF leaves the other direction
    finally:
        for task in tasks:
            task.cancel()
        endings = await asyncio.gather(*tasks, return_exceptions=True)
    failures = [ending for ending in endings if isinstance(ending, Exception)]
    if failures:
        raise failures[0]
    if not sending.result():
        raise ConnectionResetError


async def _to_pod(stream: PeerStream, connection: socket.socket) -> bool:
    """Copy until the client half-closes; False if the pod reset the connection: what it had sent can be read."""
    loop = asyncio.get_running_loop()
    while data := await stream.read():
        try:
            await loop.sock_sendall(connection, data)
        except (BrokenPipeError, ConnectionResetError):
            stream.discard()
            return False
    if stream.was_reset:
        raise BrokenPipeError("the client closed the connection")
    with suppress(OSError):  # ENOTCONN: the pod has reset the connection, which _to_client gets
        connection.shutdown(socket.SHUT_WR)
    return True


async def _to_client(connection: socket.socket, stream: PeerStream) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(connection, CHUNK):
        await stream.write(data)
    await stream.finish()
