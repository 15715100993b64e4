# SPDX-License-Identifier: AGPL-3.0-or-later
"""Answers as Proxmox's API daemon frames them (PVE::APIServer::AnyEvent)."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def as_pveproxy(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give errors Proxmox's form: a 401 without a body, a 501's message without a newline, then close."""
    try:
        response = await handler(request)
    except web.HTTPNotFound:
        path = request.path.removeprefix("/api2/json").removeprefix("/api2/extjs")
        response = web.json_response(status=501, reason=f"Method '{request.method} {path}' not implemented")
    if response.status < 400:
        return response
    if response.status == 401 and not request.path.endswith("/access/ticket"):
        response = web.Response(status=401, reason=response.reason)
    elif response.status == 501:
        reason = str(response.reason).replace(f"'{request.method} /api2/json", f"'{request.method} ")
        body = json.dumps({"message": reason, "data": None})
        response = web.Response(status=501, reason=reason, text=body, content_type="application/json")
    response.force_close()
    return response
