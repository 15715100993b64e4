# SPDX-License-Identifier: AGPL-3.0-or-later
"""Requests and answers as Proxmox's API daemon takes and frames them (PVE::APIServer::AnyEvent)."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_BODY_TYPES = frozenset({"application/x-www-form-urlencoded", "application/json", "multipart/form-data"})
_WITHOUT_BODY = frozenset({"GET", "HEAD", "DELETE"})
_JSON_DECODE_PLACE = "/usr/share/perl5/PVE/APIServer/AnyEvent.pm line 934"


@web.middleware
async def as_pveproxy(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse what the daemon refuses before the API sees it, and give errors its form; both end the connection."""
    response = await _refusal(request) or await _answer(request, handler)
    if response.status >= 400:
        response.force_close()
    return response


async def _refusal(request: web.Request) -> web.Response | None:
    """The daemon's own answer to a body it does not take."""
    if request.method in _WITHOUT_BODY:
        if request.method == "DELETE" and request.can_read_body:
            return _plain(501, f"Unexpected content for method '{request.method}'")
        return None
    if not request.can_read_body:
        return None
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


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    path = request.path.removeprefix("/api2/json").removeprefix("/api2/extjs")
    try:
        response = await handler(request)
    except web.HTTPNotFound:
        return _not_implemented(f"Method '{request.method} {path}' not implemented")
    if response.status == 401 and path != "/access/ticket":
        return web.Response(status=401, reason=response.reason)
    if response.status == 501 and path in str(response.reason):
        return _not_implemented(f"Method '{request.method} {path}' not implemented")
    return response


def _not_implemented(reason: str) -> web.Response:
    body = json.dumps({"message": reason, "data": None})
    return web.Response(status=501, reason=reason, text=body, content_type="application/json")
