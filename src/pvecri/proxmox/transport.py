# SPDX-License-Identifier: Apache-2.0
"""Calls to the Proxmox API over HTTPS: sent, retried if that is safe, and decoded.

A retry is safe if the call only reads, if it is idempotent (`repeatable`), or if it cannot have been processed:
the connection failed before the request was sent, the response is 595 (pveproxy did not reach pvedaemon) or 401.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar
from urllib.parse import urlencode, urlsplit

import msgspec

from pvecri.config.settings import ProxmoxConfig
from pvecri.errors import PvecriError, Unavailable
from pvecri.observability import correlation, metrics
from pvecri.proxmox import errors
from pvecri.proxmox.auth import Auth, Ticket, auth_from
from pvecri.proxmox.body import FileBody
from pvecri.proxmox.ctspec import ParameterValue, wire
from pvecri.proxmox.errors import ConnectionLost
from pvecri.proxmox.http import HttpClient, NoResponse, NotConnected, Response
from pvecri.proxmox.tls import Trust, WrongFingerprint, untrusted

T = TypeVar("T")

RETRY_DELAYS = (0.05, 0.2, 0.5, 1.0)
"""Seconds before each retry; their sum is longer than a reload of pveproxy takes."""
KEEPALIVE = 2.5
"""Seconds until an idle connection is closed: pveproxy closes it after five, and may do so while we send."""
CONNECTIONS = 8
# pveproxy compresses if it may: CPU time of the node, for a connection that is mostly local.
HEADERS = {"User-Agent": "pvecri", "Accept-Encoding": "identity"}

_VARIABLES = {"nodes": "{node}", "lxc": "{vmid}", "storage": "{storage}", "tasks": "{upid}", "content": "{volume}"}
"""Path components that follow a given one, as placeholders for metrics."""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One call; `action` describes it for errors (`stop CT 900001`).

    `parameters` go into the query of GET and DELETE (Proxmox refuses a body there), else into a form body;
    `body` with its `content_type` replaces the form. `repeatable` marks idempotent calls. `timeout` in seconds
    replaces proxmox.request_timeout if that is shorter.
    """

    method: str
    path: str
    action: str
    parameters: dict[str, ParameterValue] = {}
    body: bytes | FileBody = b""
    content_type: str = "application/x-www-form-urlencoded"
    repeatable: bool = False
    timeout: float = 0.0


class Transport:
    """A session with one Proxmox API. Use between `start` and `close`."""

    def __init__(self, config: ProxmoxConfig) -> None:
        self._config = config
        self._root = urlsplit(config.url).path.rstrip("/") + "/api2/json"
        self._auth: Auth | None = None
        self._trust: Trust | None = None
        self._client: HttpClient | None = None

    async def start(self) -> None:
        """Open the session; nothing is sent yet. ConfigError if credentials or certificates cannot be read."""
        self._auth = auth_from(self._config, self._login)
        self._trust = Trust(self._config)
        self._client = HttpClient(self._config.url, self._trust, connections=CONNECTIONS, keepalive=KEEPALIVE)

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    async def call(self, call: Call, into: type[T]) -> T:
        """Make the call and decode the response's `data` as type `into`.

        Unavailable if Proxmox cannot be reached, ConnectionLost if the last request got no response,
        PermissionDenied, ProxmoxError or one of its kinds if Proxmox refuses.
        """
        assert self._auth is not None, "start() comes first"
        reply = await self._send(call, await self._auth.headers())
        # Once, also for calls that are not repeatable: a request with refused credentials was not processed.
        if reply.status == 401 and self._auth.refused():
            reply = await self._send(call, await self._auth.headers())
        if reply.status >= 400:
            raise errors.from_answer(call.action, reply.status, reply.reason, reply.body, self._auth.account)
        return _decode(call, reply.body, into)

    async def _login(self, username: str, password: str) -> Ticket:
        call = Call(
            method="POST",
            path="/access/ticket",
            action=f"log in as {username}",
            parameters={"username": username, "password": password},
            repeatable=True,
        )
        reply = await self._send(call, {})
        if reply.status >= 400:
            raise errors.from_answer(call.action, reply.status, reply.reason, reply.body, f"user {username}")
        return _decode(call, reply.body, Ticket)

    async def _send(self, call: Call, headers: dict[str, str]) -> Response:
        """Send the call, with as many retries as are safe and RETRY_DELAYS has."""
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

    async def _exchange(self, call: Call, headers: dict[str, str]) -> Response:
        """Send once. _NotSent if nothing was sent, ConnectionLost without response, Unavailable for a redirect."""
        # No client: the undo of a call that the daemon's end has cancelled.
        if self._client is None or self._trust is None:
            raise Unavailable(f"Proxmox: {call.action}: the connection is closed: the daemon is ending")
        target, body, content = self._encode(call)
        template = path_template(call.path)
        measured = metrics.measured(metrics.PROXMOX_REQUESTS, metrics.PROXMOX_SECONDS, call.method, template)
        attributes = {"http.request.method": call.method, "url.path": self._root + call.path}
        span = correlation.span(f"Proxmox {call.method} {template}", attributes, remote=True)
        with span, measured as measure, self._connection_errors(call, self._trust):
            async with asyncio.timeout(max(call.timeout, self._config.request_timeout)):
                response = await self._client.request(call.method, target, HEADERS | headers | content, body)
            measure.code = str(response.status)
            if 300 <= response.status < 400:
                # Following it would send the credentials to another server, or without TLS.
                raise Unavailable(_redirected(self._config.url, call, response))
            return response

    @contextmanager
    def _connection_errors(self, call: Call, trust: Trust) -> Iterator[None]:
        """Raise the HTTP client's errors as _NotSent and ConnectionLost."""
        url = self._config.url
        try:
            yield
        except NotConnected as error:
            if isinstance(error.error, ssl.SSLError | WrongFingerprint):
                refusal = untrusted(self._config, error.error)
                raise _NotSent(refusal, worth_repeating=trust.refused()) from error
            reason = f"cannot connect to {url}: {error.error.strerror or error}: check proxmox.url"
            raise _NotSent(Unavailable(f"Proxmox: {call.action}: {reason}"), worth_repeating=True) from error
        except TimeoutError as error:
            raise ConnectionLost(
                f"Proxmox: {call.action}: {url} did not answer within "
                f"{max(call.timeout, self._config.request_timeout):g} s (proxmox.request_timeout)"
            ) from error
        except NoResponse as error:
            raise ConnectionLost(
                f"Proxmox: {call.action}: {url} (proxmox.url) ended the connection: {error}"
            ) from error

    def _encode(self, call: Call) -> tuple[str, bytes | FileBody | None, dict[str, str]]:
        """Target, body and headers of a call; UPIDs and volume ids in its path are escaped already."""
        form = urlencode({name: wire(value) for name, value in call.parameters.items()})
        target = self._root + call.path
        if call.method in ("GET", "DELETE"):
            return f"{target}?{form}" if form else target, None, {}
        return target, call.body or form.encode(), {"Content-Type": call.content_type}


class _NotSent(Exception):
    """The request was not sent; `error` is what `call` raises if there is no retry."""

    def __init__(self, error: PvecriError, *, worth_repeating: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.status = error.status
        self.worth_repeating = worth_repeating


def _redirected(url: str, call: Call, response: Response) -> str:
    target = response.location or "nowhere"
    return (
        f"Proxmox: {call.action}: {url} (proxmox.url) redirects to {target!r}, which is not followed because the "
        "credentials would go along: set proxmox.url to the address of the API itself"
    )


def path_template(path: str) -> str:
    """An API path with placeholders for node, VMID, storage, UPID and volume: a metrics label has few values."""
    parts = iter(path.split("/"))
    shown = []
    for part in parts:
        shown.append(part)
        if part in _VARIABLES and next(parts, ""):
            shown.append(_VARIABLES[part])
        if part == "content":
            break  # a volume id may contain a slash
    return "/".join(shown)


class _Envelope(msgspec.Struct):
    """The envelope of every response."""

    data: msgspec.Raw = msgspec.Raw(b"null")


def _decode(call: Call, body: bytes, into: type[T]) -> T:
    try:
        data = msgspec.json.decode(body, type=_Envelope).data
        return msgspec.json.decode(data, type=into, strict=False)
    except msgspec.DecodeError as error:
        raise errors.ProxmoxError(call.action, f"invalid response: {error}") from error
