# SPDX-License-Identifier: Apache-2.0
"""Serves a request over the protocol that its client upgrades to: SPDY/3.1 or WebSocket.

Imported with the first such request: it loads both protocols.
"""

from __future__ import annotations

from collections.abc import Sequence

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection
from wsproto.utilities import RemoteProtocolError

from pvecri.observability import metrics
from pvecri.streaming import exec_attach, portforward
from pvecri.streaming.http import PROTOCOL_HEADER, HttpError, HttpExchange, HttpRequest
from pvecri.streaming.remotecommand import SPDY_VERSIONS, WEBSOCKET_VERSIONS, Version, negotiate
from pvecri.streaming.requests import CommandRequest, ForwardRequest, Request
from pvecri.streaming.transport import TcpTransport
from pvecri.streaming.websocket import WebSocket, WebSocketTransport

SPDY = "spdy/3.1"
WEBSOCKET = "websocket"


async def serve(
    request: Request, http: HttpRequest, exchange: HttpExchange, transport: TcpTransport, idle: float
) -> None:
    """Serve `request` until its streams have ended or nothing has moved for `idle` seconds.

    HttpError if the client asks for no upgrade, or offers no protocol that the kind of request has.
    """
    if http.upgrade == WEBSOCKET:
        await _serve_websocket(request, http, transport, idle)
    elif http.upgrade == SPDY:
        await _serve_spdy(request, http, exchange, transport, idle)
    else:
        raise HttpError(400, "an upgrade to SPDY/3.1 or WebSocket is required")


async def _serve_spdy(
    request: Request, http: HttpRequest, exchange: HttpExchange, transport: TcpTransport, idle: float
) -> None:
    offered = http.values(PROTOCOL_HEADER)
    if not offered:
        raise HttpError(400, f"the header {PROTOCOL_HEADER} is required")
    if isinstance(request, ForwardRequest):
        if portforward.SPDY_PROTOCOL not in offered:
            raise _no_common_protocol(offered, [portforward.SPDY_PROTOCOL])
        await exchange.switch(_spdy_headers(portforward.SPDY_PROTOCOL))
        _count(request, "spdy")
        await portforward.serve_over_spdy(request, transport, idle)
        return
    version = _negotiate(offered, SPDY_VERSIONS)
    await exchange.switch(_spdy_headers(version.name))
    _count(request, "spdy")
    await exec_attach.serve_over_spdy(request, version, transport, idle)


async def _serve_websocket(request: Request, http: HttpRequest, transport: TcpTransport, idle: float) -> None:
    offered = http.values("sec-websocket-protocol") or [""]
    if isinstance(request, CommandRequest):
        version = _negotiate(offered, WEBSOCKET_VERSIONS)
        websocket = await _accept(http, transport, version.name)
        _count(request, "websocket")
        await exec_attach.serve_over_websocket(request, version, websocket, idle)
        return
    known = (portforward.TUNNEL_PROTOCOL, *portforward.CHANNEL_PROTOCOLS)
    protocol = next((name for name in offered if name in known), None)
    if protocol is None:
        raise _no_common_protocol(offered, known)
    websocket = await _accept(http, transport, protocol)
    _count(request, "websocket")
    if protocol == portforward.TUNNEL_PROTOCOL:
        await portforward.serve_over_spdy(request, WebSocketTransport(websocket), idle)
    else:
        framing = portforward.CHANNEL_PROTOCOLS[protocol]
        await portforward.serve_over_channels(request, framing, websocket, idle)


async def _accept(http: HttpRequest, transport: TcpTransport, protocol: str) -> WebSocket:
    """The server's half of the WebSocket handshake."""
    # RFC 6455, section 4.1; wsproto does not see the method.
    if http.method != "GET":
        raise HttpError(405, "a WebSocket handshake must be a GET", [("allow", "GET")])
    connection = WSConnection(ConnectionType.SERVER)
    try:
        connection.initiate_upgrade_connection(
            [(name.encode("latin-1"), value.encode("latin-1")) for name, value in http.headers], http.path
        )
    except RemoteProtocolError as error:
        raise HttpError(400, str(error)) from None
    list(connection.events())  # wsproto's Request event, which must be consumed
    await transport.write(connection.send(AcceptConnection(subprotocol=protocol or None)))
    return WebSocket(transport, connection)


def _count(request: Request, protocol: str) -> None:
    metrics.STREAMING_SESSIONS.labels(request.kind.value, protocol).inc()


def _spdy_headers(protocol: str) -> list[tuple[str, str]]:
    return [("connection", "Upgrade"), ("upgrade", "SPDY/3.1"), (PROTOCOL_HEADER, protocol)]


def _negotiate(offered: Sequence[str], versions: Sequence[Version]) -> Version:
    version = negotiate(offered, versions)
    if version is None:
        raise _no_common_protocol(offered, [version.name for version in versions if version.name])
    return version


def _no_common_protocol(offered: Sequence[str], known: Sequence[str]) -> HttpError:
    names = [name for name in known if name]
    # Status and header as from Kubernetes' package httpstream, whose clients look for them.
    return HttpError(
        403,
        f"no common protocol: the client offers {', '.join(offered)}; the server supports {', '.join(names)}",
        [("x-accepted-stream-protocol-versions", name) for name in names],
    )
