# SPDX-License-Identifier: Apache-2.0
"""The streaming server: issues one-time URLs, and serves the clients that connect with them."""

from __future__ import annotations

import asyncio
import logging
import ssl
from contextlib import suppress
from importlib import import_module
from ipaddress import ip_address

from pvecri import tls
from pvecri.config.settings import ConfigError, StreamingConfig
from pvecri.observability import correlation, metrics
from pvecri.streaming.http import HttpError, HttpExchange, HttpRequest, receive_within
from pvecri.streaming.requests import Request
from pvecri.streaming.tokens import Tokens
from pvecri.streaming.transport import READ_SIZE, TcpTransport
from pvecri.supervision import report

log = logging.getLogger(__name__)

REQUEST_TIMEOUT = 30.0
"""Seconds for a new connection to send its request."""

MAX_UNAUTHENTICATED = 64
"""Connections without a valid URL yet. Real clients send theirs at once, so of more the oldest is closed."""


class StreamingServer:
    """Issues URLs and serves connections between `start` and `close`."""

    def __init__(self, config: StreamingConfig) -> None:
        self._config = config
        self._tokens: Tokens[tuple[Request, str]] = Tokens(config.url_lifetime)  # with the ID of the CRI call
        self._connections: set[asyncio.Task[None]] = set()
        self._sessions: set[asyncio.Task[None]] = set()
        self._unauthenticated: dict[asyncio.Task[None], TcpTransport] = {}  # the oldest first
        self._server: asyncio.Server | None = None
        self._tls: ssl.SSLContext | None = None
        self._base = ""

    async def start(self) -> None:
        """Listen; ConfigError if the address or the certificate cannot be used."""
        config = self._config
        self._tls = context = tls.server_context(config.tls_cert, config.tls_key, "streaming")
        try:
            # asyncio stops reading a connection when twice the limit is buffered.
            self._server = await asyncio.start_server(
                self._connected, config.address, config.port, ssl=context, limit=READ_SIZE
            )
        except OSError as error:
            raise ConfigError(f"streaming.address, streaming.port: {error.strerror}") from error
        host, port = self._server.sockets[0].getsockname()[:2]
        self._base = f"{'https' if context else 'http'}://{_reachable(host)}:{port}"
        log.info("streaming on %s", self._base)

    def renew_certificate(self, config: StreamingConfig) -> bool:
        """Use the certificate of `config` for connections from now on; see tls.renew."""
        return tls.renew(self._tls, config.tls_cert, config.tls_key, "streaming")

    async def close(self) -> None:
        """Stop listening and close all connections: their commands are killed."""
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def url(self, request: Request) -> str:
        """Issue a one-time URL for `request`; ResourceExhausted if too many are unused."""
        return f"{self._base}/{request.kind.value}/{self._tokens.issue((request, correlation.current_id()))}"

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        transport = self._unauthenticated[task] = TcpTransport(reader, writer)
        if len(self._unauthenticated) > MAX_UNAUTHENTICATED:
            # Whoever can reach the port may connect, so these must not use up the descriptors of the daemon. The
            # oldest leaves the list at once: in a burst more connect before its task has run again.
            self._unauthenticated.pop(next(iter(self._unauthenticated))).abort()
        try:
            with correlation.operation("streaming connection"):
                await self._serve(transport)
        except asyncio.CancelledError:
            pass  # by `close`; asyncio's server would log it as an error
        except Exception as error:
            report(error, "streaming connection", "a streaming connection failed")
        finally:
            transport.abort()
            self._connections.discard(task)
            self._sessions.discard(task)
            self._unauthenticated.pop(task, None)

    async def _serve(self, transport: TcpTransport) -> None:
        exchange = HttpExchange(transport)
        with suppress(BrokenPipeError):
            try:
                http = await receive_within(exchange, REQUEST_TIMEOUT)
                if http is None:
                    return
                request = self._claim(http)
                with metrics.STREAMING_RUNNING.labels(request.kind.value).track_inprogress():
                    # Two megabytes of code that a node without clients never needs; a thread, as it takes a while.
                    upgrade = await asyncio.to_thread(import_module, "pvecri.streaming.upgrade")
                    await upgrade.serve(request, http, exchange, transport, self._config.idle_timeout)
            except HttpError as error:
                metrics.STREAMING_REFUSALS.labels(str(error.status)).inc()
                log.info("streaming request refused: %d %s", error.status, error)
                await exchange.refuse(error)
                await transport.close()

    def _claim(self, http: HttpRequest) -> Request:
        """Consume the URL's token and return its request; the connection counts as a session from now on."""
        if http.method not in {"GET", "POST"}:
            raise HttpError(405, f"{http.method} is not allowed", [("allow", "GET, POST")])
        if len(self._sessions) >= self._config.max_sessions:
            raise HttpError(503, f"streaming.max_sessions ({self._config.max_sessions}) is reached")
        kind, _, token = http.path.partition("?")[0].removeprefix("/").partition("/")
        # From here on the URL is used, even if the upgrade is refused; above the client may try again.
        request, caller = self._tokens.consume(token) or (None, "")
        if request is None or request.kind.value != kind:
            raise HttpError(404, "unknown, used or expired; ask for a new URL (streaming.url_lifetime)")
        correlation.rename(f"streaming of {kind}", caused_by=caller)
        task = asyncio.current_task()
        assert task is not None
        self._unauthenticated.pop(task, None)
        self._sessions.add(task)
        return request


def _reachable(host: str) -> str:
    """The host for a URL: loopback for the unspecified address, which clients cannot connect to."""
    address = ip_address(host)
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "[::1]"
    return host if address.version == 4 else f"[{host}]"
