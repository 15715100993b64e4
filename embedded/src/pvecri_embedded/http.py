# SPDX-License-Identifier: AGPL-3.0-or-later
"""Requests and answers as Proxmox's API daemon takes and frames them (PVE::APIServer::AnyEvent)."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from weakref import WeakKeyDictionary

from aiohttp import web
from aiohttp.typedefs import Middleware

KEEP_ALIVE_REQUESTS = 100
KEEP_ALIVE_S = 5.0
"""How many requests a connection takes, and how long it may be idle, before Proxmox closes it."""
BODY_MAX_BYTES = 512 * 1024
"""Of any request but an upload."""
REFUSAL_DELAY_S = 3.0
"""How long Proxmox holds back the answer to a request whose credentials it does not take."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_BODY_TYPES = frozenset({"application/x-www-form-urlencoded", "application/json", "multipart/form-data"})
_WITHOUT_BODY = frozenset({"GET", "HEAD", "DELETE"})
_UPLOAD = re.compile(r"/nodes/[^/]+/storage/[^/]+/upload")
_JSON_DECODE_PLACE = "/usr/share/perl5/PVE/APIServer/AnyEvent.pm line 934"


def as_pveproxy(refusal_delay: float) -> Middleware:
    """Refuse what the daemon refuses before the API sees it, and give errors its form; both end the connection.

    A refusal of credentials is answered `refusal_delay` seconds late.
    """
    requests: WeakKeyDictionary[asyncio.Transport, int] = WeakKeyDictionary()

    def is_last(request: web.Request) -> bool:
        """Whether the connection is closed after this request."""
        transport = request.transport
        if transport is None:
            return True
        # By connection, without keeping it: aiohttp does not number its requests.
        requests[transport] = requests.get(transport, 0) + 1
        return requests[transport] >= KEEP_ALIVE_REQUESTS or _is_upload(request)

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        began = asyncio.get_running_loop().time()
        response = await _refusal(request) or await _answer(request, handler)
        if is_last(request) or response.status >= 400:
            response.force_close()
        if _is_refused_before_the_api(request, response) or response.status == 401:
            took = asyncio.get_running_loop().time() - began
            await asyncio.sleep(max(0.0, refusal_delay - took))
        return response

    return middleware


async def _refusal(request: web.Request) -> web.Response | None:
    """The daemon's own answer to a body it does not take."""
    if request.method in _WITHOUT_BODY:
        if request.method == "DELETE" and request.can_read_body:
            return _plain(501, f"Unexpected content for method '{request.method}'")
        return None
    if not request.can_read_body:
        return None
    if (request.content_length or 0) > BODY_MAX_BYTES and not _is_upload(request):
        return _plain(501, "for data too large")
    return await _refusal_of_body(request)


async def _refusal_of_body(request: web.Request) -> web.Response | None:
    if "Content-Type" in request.headers and request.content_type not in _BODY_TYPES:
        return _plain(506, f"upload 'Content-Type '{request.content_type}' not implemented")
    if request.content_type == "application/json":
        try:
            json.loads(await request.read() or b"{}")
        except ValueError as error:
            return _plain(500, f"{_perl_json_error(error)} at {_JSON_DECODE_PLACE}.")
    return None


def _perl_json_error(error: ValueError) -> str:
    """The words of Perl's JSON module for the most usual mistake; Python's for the others."""
    if isinstance(error, json.JSONDecodeError) and "double quotes" in error.msg:
        rest = error.doc[error.pos :].rstrip("}")
        return f'\'"\' expected, at character offset {error.pos} (before "{rest}")'
    return f"malformed JSON string: {error}"


def _plain(status: int, reason: str) -> web.Response:
    return web.Response(status=status, reason=reason, text=reason)


def _path(request: web.Request) -> str:
    return request.path.removeprefix("/api2/json").removeprefix("/api2/extjs")


def _is_upload(request: web.Request) -> bool:
    return request.method == "POST" and _UPLOAD.fullmatch(_path(request)) is not None


def _is_refused_before_the_api(request: web.Request, response: web.StreamResponse) -> bool:
    """Whether it is what PVE::HTTPServer::auth_handler refuses: it checks the rights of an upload, too."""
    path = _path(request)
    if response.status == 403:
        return _is_upload(request)
    return response.status == 401 and path != "/access/ticket"


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    path = _path(request)
    try:
        response = await handler(request)
    except web.HTTPNotFound:
        return _not_implemented(f"Method '{request.method} {path}' not implemented")
    if _is_refused_before_the_api(request, response):
        return web.Response(status=response.status, reason=response.reason)
    if response.status == 501 and path in str(response.reason):
        return _not_implemented(f"Method '{request.method} {path}' not implemented")
    return response


def _not_implemented(reason: str) -> web.Response:
    body = json.dumps({"message": reason, "data": None})
    return web.Response(status=501, reason=reason, text=body, content_type="application/json")
