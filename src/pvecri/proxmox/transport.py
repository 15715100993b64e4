# SPDX-License-Identifier: Apache-2.0
"""One call to the Proxmox API over HTTPS: sent, repeated where that is safe, and decoded.

A repeat is safe when the call only reads, when it says so itself (`repeatable`), or when it cannot have arrived:
the connection failed before anything was sent, the answer is 595 (pveproxy did not reach pvedaemon), or 401.
"""

from __future__ import annotations

import asyncio
from typing import TypeVar
from urllib.parse import urlencode

import aiohttp
import msgspec
from yarl import URL

from pvecri import metrics
from pvecri.config import ProxmoxConfig
from pvecri.errors import PvecriError, Unavailable
from pvecri.proxmox import errors
from pvecri.proxmox.auth import Auth, Ticket, auth_from
from pvecri.proxmox.ctspec import ParameterValue, wire
from pvecri.proxmox.tls import tls_setting, untrusted

T = TypeVar("T")

RETRY_DELAYS = (0.05, 0.2, 0.5, 1.0)
"""Seconds before each repeat; together longer than a reload of pveproxy takes."""
KEEPALIVE = 2.5
"""Seconds an idle connection is kept. pveproxy closes it after five; ours must be gone first."""
CONNECTIONS = 8

_VARIABLES = {"nodes": "{node}", "lxc": "{vmid}", "storage": "{storage}", "tasks": "{upid}", "content": "{volume}"}
"""What follows which part of an API path."""


class ConnectionLost(Unavailable):
    """The request was sent and no answer came: nobody knows whether Proxmox has done it."""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One call. `doing` says it in words for errors (`stop CT 900001`).

    `parameters` go into the query of GET and DELETE (Proxmox refuses a body there), else into a form body;
    `body` with its `content_type` takes the form's place.
    """

    method: str
    path: str
    doing: str
    parameters: dict[str, ParameterValue] = {}
    body: bytes = b""
    content_type: str = "application/x-www-form-urlencoded"
    repeatable: bool = False


class Reply(msgspec.Struct, frozen=True):
    """An answer as it came."""

    status: int
    reason: str
    body: bytes


class Transport:
    """A session with one Proxmox API. Use between `start` and `close`."""

    def __init__(self, config: ProxmoxConfig) -> None:
        self._config = config
        self._root = config.url.rstrip("/") + "/api2/json"
        self._auth: Auth | None = None
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Open the session; nothing is sent yet. ConfigError when credentials or certificates cannot be read."""
        self._auth = auth_from(self._config, self._login)
        connector = aiohttp.TCPConnector(
            limit=CONNECTIONS, keepalive_timeout=KEEPALIVE, ssl=tls_setting(self._config)
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self._config.request_timeout),
            headers={"User-Agent": "pvecri", "Accept-Encoding": "identity"},
        )

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def call(self, call: Call, into: type[T]) -> T:
        """Make the call and decode its `data`.

        Raises Unavailable when Proxmox cannot be reached, ConnectionLost when a call that is not repeatable got no
        answer, PermissionDenied, and ProxmoxError or one of its kinds when Proxmox refuses.
        """
        assert self._auth is not None, "start() comes first"
        reply = await self._send(call, await self._auth.headers())
        if reply.status == 401 and self._auth.refused():
            reply = await self._send(call, await self._auth.headers())
        if reply.status >= 400:
            raise errors.from_answer(call.doing, reply.status, reply.reason, reply.body, self._auth.account)
        return _decode(call, reply.body, into)

    async def _login(self, username: str, password: str) -> Ticket:
        call = Call(
            method="POST",
            path="/access/ticket",
            doing=f"log in as {username}",
            parameters={"username": username, "password": password},
            repeatable=True,
        )
        reply = await self._send(call, {})
        if reply.status >= 400:
            raise errors.from_answer(call.doing, reply.status, reply.reason, reply.body, f"user {username}")
        return _decode(call, reply.body, Ticket)

    async def _send(self, call: Call, headers: dict[str, str]) -> Reply:
        """The answer, after as many repeats as are safe and RETRY_DELAYS has."""
        repeatable = call.repeatable or call.method == "GET"
        for delay in RETRY_DELAYS:
            try:
                reply = await self._exchange(call, headers)
            except ConnectionLost:
                if not repeatable:
                    raise
            except _NotSent as failure:
                if not failure.worth_repeating:
                    raise failure.error from failure
            else:
                if not (
                    reply.status == errors.NOT_PASSED_ON
                    or (repeatable and reply.status in errors.GATEWAY_STATUSES)
                ):
                    return reply
            metrics.PROXMOX_RETRIES.labels(call.method).inc()
            await asyncio.sleep(delay)
        try:
            return await self._exchange(call, headers)
        except _NotSent as failure:
            raise failure.error from failure

    async def _exchange(self, call: Call, headers: dict[str, str]) -> Reply:
        """Send once. Raises _NotSent when nothing was sent, ConnectionLost when no answer came."""
        with metrics.measured(
            metrics.PROXMOX_REQUESTS, metrics.PROXMOX_SECONDS, call.method, path_template(call.path)
        ) as measure:
            reply = await self._exchange_once(call, headers)
            measure.code = str(reply.status)
            return reply

    async def _exchange_once(self, call: Call, headers: dict[str, str]) -> Reply:
        if self._session is None:  # an undo of a call that the end of the daemon has cut off
            raise Unavailable(f"Proxmox: {call.doing}: the connection is closed: the daemon is ending")
        url, body, content = self._encode(call)
        try:
            async with self._session.request(call.method, url, data=body, headers=headers | content) as response:
                return Reply(response.status, response.reason or "", await response.read())
        except (aiohttp.ClientSSLError, aiohttp.ServerFingerprintMismatch) as error:
            raise _NotSent(untrusted(self._config, error), worth_repeating=False) from error
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            problem = f"Proxmox: {call.doing}: cannot connect to {self._config.url}: {error}: check proxmox.url"
            raise _NotSent(Unavailable(problem), worth_repeating=True) from error
        except TimeoutError as error:
            raise ConnectionLost(
                f"Proxmox: {call.doing}: {self._config.url} did not answer within "
                f"{self._config.request_timeout:g} s (proxmox.request_timeout)"
            ) from error
        except aiohttp.ClientError as error:
            raise ConnectionLost(
                f"Proxmox: {call.doing}: {self._config.url} (proxmox.url) ended the connection: {error!r}"
            ) from error

    def _encode(self, call: Call) -> tuple[URL, bytes | None, dict[str, str]]:
        form = urlencode({name: wire(value) for name, value in call.parameters.items()})
        address = self._root + call.path
        if call.method in ("GET", "DELETE"):
            return URL(f"{address}?{form}" if form else address, encoded=True), None, {}
        return URL(address, encoded=True), call.body or form.encode(), {"Content-Type": call.content_type}


class _NotSent(Exception):
    """The request did not leave this machine; `error` is what the caller is told."""

    def __init__(self, error: PvecriError, *, worth_repeating: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.status = error.status
        self.worth_repeating = worth_repeating


def path_template(path: str) -> str:
    """An API path with placeholders for what differs from node to node and from call to call. Pure."""
    parts = iter(path.split("/"))
    shown = []
    for part in parts:
        shown.append(part)
        if part in _VARIABLES and next(parts, ""):
            shown.append(_VARIABLES[part])
        if part == "content":
            break  # a volume's id may contain a slash
    return "/".join(shown)


class _Envelope(msgspec.Struct):
    """Every answer has what was asked for in `data`."""

    data: msgspec.Raw = msgspec.Raw(b"null")


def _decode(call: Call, body: bytes, into: type[T]) -> T:
    try:
        data = msgspec.json.decode(body, type=_Envelope).data
        return msgspec.json.decode(data, type=into, strict=False)
    except msgspec.DecodeError as error:
        raise errors.ProxmoxError(call.doing, f"the answer is not understood: {error}") from error
