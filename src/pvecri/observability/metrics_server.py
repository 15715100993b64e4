# SPDX-License-Identifier: Apache-2.0
"""Serves the daemon's metrics to Prometheus, at `GET /metrics`, and its health, at `GET /healthz` and `/readyz`.

Imported only when metrics.listen is set: aiohttp's server takes more than a megabyte.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from aiohttp import web
from prometheus_client.exposition import choose_encoder

from pvecri import tls
from pvecri.config.settings import ConfigError, MetricsConfig
from pvecri.observability import probes
from pvecri.observability.metrics_registry import REGISTRY

log = logging.getLogger(__name__)

SHUTDOWN_TIMEOUT = 1.0
"""Seconds for running requests when the daemon stops."""

Checks = Callable[[], Awaitable[Sequence[probes.Check]]]


class MetricsServer:
    """Serves between `start` and `close`."""

    def __init__(
        self, config: MetricsConfig, observe: Callable[[], Awaitable[None]], *, alive: Checks, ready: Checks
    ) -> None:
        """`observe` is called before each scrape, to set gauges that are not kept up to date.

        `alive` is asked for each /healthz, `ready` for each /readyz.
        """
        self._config = config
        self._observe = observe
        self._tls: ssl.SSLContext | None = None
        app = web.Application()
        app.router.add_get("/metrics", self._show)
        app.router.add_get("/healthz", partial(self._probe, "healthz", alive))
        app.router.add_get("/readyz", partial(self._probe, "readyz", ready))
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT)

    async def start(self) -> None:
        """Listen; ConfigError for an invalid certificate or an address that cannot be bound."""
        config = self._config
        self._tls = context = tls.server_context(config.tls_cert, config.tls_key, "metrics")
        host, port = config.address
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port, ssl_context=context).start()
        except OSError as error:
            await self._runner.cleanup()
            raise ConfigError(f"metrics.listen: {config.listen}: {error.strerror}") from error
        log.info("serving metrics on %s", self.url)

    @property
    def url(self) -> str:
        """The URL of the metrics."""
        host, port = self._runner.addresses[0][:2]
        name = f"[{host}]" if ":" in host else host
        return f"{'https' if self._config.tls_cert else 'http'}://{name}:{port}/metrics"

    def renew_certificate(self, config: MetricsConfig) -> bool:
        """Use the certificate of `config` for connections from now on; see tls.renew."""
        return tls.renew(self._tls, config.tls_cert, config.tls_key, "metrics")

    async def close(self) -> None:
        """Refuse new requests and stop."""
        await self._runner.cleanup()

    async def _show(self, request: web.Request) -> web.Response:
        await self._observe()
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        # About 5 ms (decision 0062): too long for the event loop.
        body = await asyncio.to_thread(encode, REGISTRY)
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _probe(self, endpoint: str, checks: Checks, request: web.Request) -> web.Response:
        passed, body = probes.answer(
            endpoint,
            await checks(),
            verbose="verbose" in request.query,
            excluded=request.query.getall("exclude", ()),
        )
        headers = {"Cache-Control": "no-cache, private", "X-Content-Type-Options": "nosniff"}
        return web.Response(status=200 if passed else 503, text=body, headers=headers)
