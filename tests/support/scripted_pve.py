# SPDX-License-Identifier: Apache-2.0
"""An HTTP server that answers by script, with bodies as a Proxmox VE API sends them."""

from __future__ import annotations

import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from aiohttp import web

from pvecri.config.settings import ProxmoxConfig

PREFIX = "/api2/json"
Step = Callable[[web.BaseRequest], web.StreamResponse]


def data(value: object) -> Step:
    """An answer of 200."""
    return lambda _: _json(200, "OK", {"data": value})


def refusal(status: int, words: str, errors: dict[str, str] | None = None) -> Step:
    """A refusal as Proxmox words it: in the reason phrase and, with a newline, in the body."""
    body: dict[str, object] = {"message": f"{words}\n", "data": None}
    return lambda _: _json(status, words, body | ({"errors": errors} if errors else {}))


def unauthorized(words: str = "Authentication failed!") -> Step:
    """A 401, which has no body."""
    return lambda _: web.Response(status=401, reason=words)


def redirect(status: int, location: str) -> Step:
    """A redirect to another URL, as a proxy in front of the API sends it."""
    return lambda _: web.Response(status=status, headers={"Location": location})


def dropped(request: web.BaseRequest) -> web.StreamResponse:
    """No answer at all: the connection is closed after the request was read."""
    assert request.transport is not None
    request.transport.close()
    return web.Response()


def _json(status: int, reason: str, body: dict[str, object]) -> web.Response:
    return web.Response(
        status=status, reason=reason, body=msgspec.json.encode(body), content_type="application/json"
    )


@dataclass(frozen=True)
class Received:
    """A request as it came in."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class ScriptedPve:
    """The server. The last step of a path's script is repeated; a path without a script is not implemented."""

    url: str = ""
    scripts: dict[str, list[Step]] = field(default_factory=dict)
    received: list[Received] = field(default_factory=list)
    _position: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def script(self, method: str, path: str, *steps: Step) -> None:
        """What `METHOD path` is answered, one step a request."""
        self.scripts[f"{method} {path}"] = list(steps)

    def count(self, method: str, path: str) -> int:
        """How many requests of this kind came in."""
        return sum(1 for each in self.received if (each.method, each.path.split("?")[0]) == (method, path))

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer by the script, and note the request."""
        path = request.raw_path.removeprefix(PREFIX)
        self.received.append(Received(request.method, path, dict(request.headers), await request.read()))
        key = f"{request.method} {path.split('?')[0]}"
        steps = self.scripts.get(key, [refusal(501, f"Method '{key}' not implemented")])
        position = self._position[key]
        self._position[key] = position + 1
        return steps[min(position, len(steps) - 1)](request)

    def config(self, directory: Path, **changes: object) -> ProxmoxConfig:
        """The settings of a client of this server, with a token."""
        secret = directory / "secret"
        secret.write_text("s3cret\n")
        config = ProxmoxConfig(url=self.url, node="pve", token_id="cri@pve!t1", token_secret_file=secret)
        return msgspec.structs.replace(config, **changes)


@asynccontextmanager
async def scripted_pve(certificate: tuple[str, str] | None = None) -> AsyncIterator[ScriptedPve]:
    """A server on a free port of loopback, while the context lasts; with `certificate` (file, key) over TLS."""
    server = ScriptedPve()
    tls = None
    if certificate is not None:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(*certificate)
    runner = web.ServerRunner(web.Server(server.answer))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    server.url = f"http{'s' if tls else ''}://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        await runner.cleanup()
