# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 to one server, by h11 on asyncio: kept connections, each request sent once (decision 0089)."""

from __future__ import annotations

import asyncio
import ssl
from typing import Protocol
from urllib.parse import urlsplit

import h11
import msgspec

from pvecri.proxmox.body import FileBody

HAPPY_EYEBALLS_DELAY = 0.25
"""Seconds before a host's next address is tried beside the one before (RFC 8305, section 5)."""


class NotConnected(Exception):
    """There was no connection that could be used, so nothing was sent. `error` is the cause."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


class NoResponse(Exception):
    """The request was sent, and the connection ended before the response did."""


class Response(msgspec.Struct, frozen=True):
    """A response with its whole body; `location` is the target of a redirect, else empty."""

    status: int
    reason: str
    location: str
    body: bytes


class ServerCheck(Protocol):
    """Whom a client trusts."""

    @property
    def context(self) -> ssl.SSLContext:
        """The context for the next connection."""

    def verify(self, certificate: bytes) -> None:
        """OSError unless a server with this certificate (DER), which the context took, may get requests."""


class HttpClient:
    """Sends requests to the server of a URL, several at once over a connection each."""

    def __init__(self, url: str, check: ServerCheck, *, connections: int, keepalive: float) -> None:
        """At most `connections` at once; one that is idle for `keepalive` seconds is closed."""
        parts = urlsplit(url)
        assert parts.hostname is not None, "the configuration has checked it"
        self._tls = parts.scheme == "https"
        self._host = parts.hostname
        self._port = parts.port or (443 if self._tls else 80)
        self._host_header = parts.netloc.rpartition("@")[2]
        self._check = check
        self._keepalive = keepalive
        self._limit = asyncio.Semaphore(connections)
        self._closed = False
        self._open: set[_Connection] = set()
        self._idle: dict[_Connection, asyncio.TimerHandle] = {}  # the one used last at the end

    async def request(
        self, method: str, target: str, headers: dict[str, str], body: bytes | FileBody | None
    ) -> Response:
        """Send a request, once, and wait for its response; no redirect is followed.

        NotConnected if nothing was sent, NoResponse if the server ended the connection. Cancelled, it closes the
        connection: whether the server has processed the request is unknown then.
        """
        length = [] if body is None else [("Content-Length", str(len(body)))]
        request = h11.Request(
            method=method, target=target, headers=[("Host", self._host_header), *headers.items(), *length]
        )
        async with self._limit:
            connection = self._take() or await self._connect()
            try:
                response = await connection.exchange(request, body or b"")
            except BaseException:
                self._close(connection)
                raise
            self._keep(connection)
            return response

    def close(self) -> None:
        """Close all connections; requests under way raise NoResponse or NotConnected. Idempotent."""
        self._closed = True
        for connection in list(self._open):
            self._close(connection)

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        context = self._check.context if self._tls else None
        try:
            transport, connection = await loop.create_connection(
                _Connection,
                self._host,
                self._port,
                ssl=context,
                server_hostname=self._host if context else None,
                happy_eyeballs_delay=HAPPY_EYEBALLS_DELAY,
            )
        except OSError as error:
            raise NotConnected(error) from error
        self._open.add(connection)
        try:
            if self._closed:
                raise ConnectionAbortedError("closed by the client")
            if context is not None:
                self._check.verify(transport.get_extra_info("ssl_object").getpeercert(binary_form=True))
        except OSError as error:
            self._close(connection)
            raise NotConnected(error) from error
        return connection

    def _take(self) -> _Connection | None:
        """An idle connection that the server has not closed."""
        while self._idle:
            connection, timer = self._idle.popitem()
            timer.cancel()
            if connection.usable:
                return connection
            self._close(connection)
        return None

    def _keep(self, connection: _Connection) -> None:
        if connection.usable and connection in self._open:
            loop = asyncio.get_running_loop()
            self._idle[connection] = loop.call_later(self._keepalive, self._close, connection)
        else:
            self._close(connection)

    def _close(self, connection: _Connection) -> None:
        self._open.discard(connection)
        timer = self._idle.pop(connection, None)
        if timer is not None:
            timer.cancel()
        connection.abort()


class _Connection(asyncio.Protocol):
    """A connection, for one request after the other."""

    def __init__(self) -> None:
        self._http = h11.Connection(h11.CLIENT)
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[Response] | None = None
        self._head: h11.Response | None = None
        self._body = bytearray()
        self._writable = asyncio.Event()
        self._writable.set()
        self.usable = True
        """Whether another request can be sent."""

    async def exchange(self, request: h11.Request, body: bytes | FileBody) -> Response:
        """Send a request and wait for the response; NoResponse. OSError if the body's file cannot be read."""
        assert self._transport is not None, "it is connected"
        assert self._waiting is None, "one request at a time"
        self._waiting = asyncio.get_running_loop().create_future()
        self._head, self._body = None, bytearray()
        try:
            if isinstance(body, FileBody):
                await self._send_file(request, body)
            else:
                data = (h11.Data(data=body),) if body else ()
                parts = (request, *data, h11.EndOfMessage())
                # The response is awaited at once: a server may refuse a long body before it has read it.
                self._transport.writelines(self._http.send(part) or b"" for part in parts)
            return await self._waiting
        finally:
            self._waiting = None

    async def _send_file(self, request: h11.Request, body: FileBody) -> None:
        """Send the request as fast as the server reads it, until it has responded, which it may do early."""
        assert self._transport is not None, "it is connected"
        assert self._waiting is not None, "exchange() waits"
        self._transport.write(self._http.send(request) or b"")
        for chunk in body.chunks():
            await self._writable.wait()
            if self._waiting.done():
                return
            self._transport.write(self._http.send(h11.Data(data=chunk)) or b"")
        self._transport.write(self._http.send(h11.EndOfMessage()) or b"")

    def abort(self) -> None:
        """Close at once. Idempotent."""
        if self._transport is not None:
            self._transport.abort()
        self._fail("closed by the client")

    # -- asyncio's calls --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def pause_writing(self) -> None:
        """What was written is not sent yet."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """More can be written."""
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        """Some of the response; without a request it makes the connection useless."""
        if self._waiting is None:
            self.usable = False
            return
        try:
            self._http.receive_data(data)
            self._read_events()
        except h11.RemoteProtocolError as error:
            self._fail(f"invalid HTTP: {error}")

    def eof_received(self) -> None:
        """The server sends no more: that is the end of a response without a length."""
        if self._head is not None:
            self.data_received(b"")
        self._fail("closed without a response")

    def connection_lost(self, exc: Exception | None) -> None:
        """Closed, by either side."""
        self._fail(str(exc or "closed"))

    def _read_events(self) -> None:
        while True:
            event = self._http.next_event()
            if isinstance(event, h11.Response):
                self._head = event
            elif isinstance(event, h11.Data):
                self._body += event.data
            elif isinstance(event, h11.EndOfMessage):
                self._complete()
                return
            elif not isinstance(event, h11.InformationalResponse):  # all of `data` is read
                return

    def _complete(self) -> None:
        assert self._head is not None, "h11 keeps the order"
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        else:  # the server closes it after this response
            self.usable = False
        location = dict(self._head.headers).get(b"location", b"")
        response = Response(
            self._head.status_code,
            self._head.reason.decode("utf-8", "surrogateescape"),
            location.decode("utf-8", "surrogateescape"),
            bytes(self._body),
        )
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(response)
        self._writable.set()

    def _fail(self, why: str) -> None:
        self.usable = False
        self._writable.set()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(NoResponse(why))
