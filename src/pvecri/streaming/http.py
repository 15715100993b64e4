# SPDX-License-Identifier: Apache-2.0
"""The HTTP/1.1 upgrade request of a streaming connection and its response, by h11."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import h11

from pvecri.streaming.transport import TcpTransport

MAX_REQUEST = 16 << 10
"""The maximum bytes of a request's line and headers."""

PROTOCOL_HEADER = "x-stream-protocol-version"


class HttpError(Exception):
    """The request is refused with a status, and the connection closed."""

    def __init__(self, status: int, text: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.headers = headers


@dataclass(frozen=True)
class HttpRequest:
    """A request without a body. Header names are in lower case, in the order of the request."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]

    def values(self, name: str) -> list[str]:
        """The values of a list header: of several headers, or of one separated by commas."""
        texts = [value for key, value in self.headers if key == name]
        return [part.strip() for text in texts for part in text.split(",") if part.strip()]

    @property
    def upgrade(self) -> str:
        """The Upgrade protocol in lower case; empty without `Connection: upgrade`."""
        wants = any(value.lower() == "upgrade" for value in self.values("connection"))
        return ",".join(self.values("upgrade")).lower() if wants else ""


class HttpExchange:
    """The one request of a connection, and its response."""

    def __init__(self, transport: TcpTransport) -> None:
        self._transport = transport
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_REQUEST)

    async def receive(self) -> HttpRequest | None:
        """The request; None if the client closes without one. HttpError if it is malformed or has a body."""
        try:
            request = await self._next()
            if not isinstance(request, h11.Request):
                return None
            if not isinstance(await self._next(), h11.EndOfMessage):
                raise HttpError(400, "the request must not have a body")
        except h11.RemoteProtocolError as error:
            raise HttpError(error.error_status_hint, str(error)) from None
        if _size(request) > MAX_REQUEST:
            raise HttpError(431, f"the request has more than {MAX_REQUEST} bytes")
        rest, _ = self._http.trailing_data  # frames that the client has sent without waiting for the 101
        self._transport.unread(rest)
        headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers)
        return HttpRequest(request.method.decode(), request.target.decode("latin-1"), headers)

    async def _next(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._transport.read())
        return event

    async def switch(self, headers: Sequence[tuple[str, str]]) -> None:
        """101 Switching Protocols; from now on the transport is the new protocol's."""
        response = self._http.send(h11.InformationalResponse(status_code=101, headers=list(headers)))
        await self._transport.write(response or b"")

    async def refuse(self, error: HttpError) -> None:
        """Respond with an error's status and text."""
        body = f"{error.text}\n".encode()
        headers = [("content-type", "text/plain; charset=utf-8"), ("content-length", str(len(body)))]
        response = h11.Response(
            status_code=error.status, headers=[*headers, ("connection", "close"), *error.headers]
        )
        parts = [self._http.send(event) for event in (response, h11.Data(data=body), h11.EndOfMessage())]
        await self._transport.write(b"".join(part or b"" for part in parts))


def _size(request: h11.Request) -> int:
    """The size of a parsed request: h11's own limit applies to incomplete ones only."""
    return len(request.target) + sum(len(name) + len(value) for name, value in request.headers)


async def receive_within(exchange: HttpExchange, seconds: float) -> HttpRequest | None:
    """As `receive`; also None if the request is incomplete after `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            return await exchange.receive()
    except TimeoutError:
        return None
