# SPDX-License-Identifier: Apache-2.0
"""grpc.health.v1.Health on the CRI's socket, as grpc_health_probe and gRPC clients call it.

A service is SERVING while its condition of CRI Status is met; all are NOT_SERVING once the daemon stops. Served
from the descriptor like the CRI (decision 0093).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

from pvecri.cri.proto import health_pb2 as pb
from pvecri.errors import NotFound
from pvecri.pods.health import Condition

CONDITIONS: Final = {
    "": "RuntimeReady",
    "runtime.v1.RuntimeService": "RuntimeReady",
    "runtime.v1.ImageService": "ImageStoreReady",
}
"""The condition by which each service is SERVING; the empty name is the whole server."""

WATCH_INTERVAL: Final = 2.0
"""Seconds between two looks at the conditions, while anybody watches."""

Conditions = Callable[[], Awaitable[Sequence[Condition]]]
Status = pb.HealthCheckResponse.ServingStatus


class HealthService:
    """Answers until `close`; afterwards everything is NOT_SERVING."""

    def __init__(self, conditions: Conditions, interval: float = WATCH_INTERVAL) -> None:
        """`conditions` returns those of CRI Status."""
        self._conditions = conditions
        self._interval = interval
        self._closing = asyncio.Event()

    def close(self) -> None:
        """Send NOT_SERVING to those who watch, and end their streams. Idempotent."""
        self._closing.set()

    async def check(self, request: pb.HealthCheckRequest) -> pb.HealthCheckResponse:
        """Check: NotFound for a service that is not served, as the protocol has it."""
        if request.service not in CONDITIONS:
            raise NotFound(f"no service {request.service!r}; there are {', '.join(filter(None, CONDITIONS))}")
        return pb.HealthCheckResponse(status=await self._status(request.service))

    async def list(self, _: pb.HealthListRequest) -> pb.HealthListResponse:
        """List: the status of every service."""
        statuses = {service: pb.HealthCheckResponse(status=await self._status(service)) for service in CONDITIONS}
        return pb.HealthListResponse(statuses=statuses)

    async def watch(self, request: pb.HealthCheckRequest) -> AsyncIterator[pb.HealthCheckResponse]:
        """Watch: the status now, and each change of it; SERVICE_UNKNOWN is no error here."""
        sent: Status | None = None
        while True:
            closing = self._closing.is_set()
            status = await self._status(request.service)
            if status != sent:
                yield pb.HealthCheckResponse(status=status)
                sent = status
            if closing:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval):
                    await self._closing.wait()

    async def _status(self, service: str) -> Status:
        if service not in CONDITIONS:
            return pb.HealthCheckResponse.SERVICE_UNKNOWN
        if self._closing.is_set():
            return pb.HealthCheckResponse.NOT_SERVING
        met = {each.type for each in await self._conditions() if each.met}
        if CONDITIONS[service] in met:
            return pb.HealthCheckResponse.SERVING
        return pb.HealthCheckResponse.NOT_SERVING
