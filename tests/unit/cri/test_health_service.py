# SPDX-License-Identifier: Apache-2.0
"""The gRPC health checking protocol on a real socket, by a client that knows only the protocol's bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from pvecri.cri.health import HealthService
from pvecri.cri.proto import health_pb2 as pb
from pvecri.cri.server import CriServer
from pvecri.pods.health import Condition

SERVING, NOT_SERVING, SERVICE_UNKNOWN = b"\x08\x01", b"\x08\x02", b"\x08\x03"
"""HealthCheckResponse, encoded: field 1, a varint."""

RUNTIME, IMAGES = "runtime.v1.RuntimeService", "runtime.v1.ImageService"
BROKEN = {"": NOT_SERVING, RUNTIME: NOT_SERVING, IMAGES: NOT_SERVING}


def encoded(service: str) -> bytes:
    """HealthCheckRequest."""
    return b"\x0a" + bytes([len(service)]) + service.encode() if service else b""


class Daemon:
    """A server with conditions that a test sets."""

    def __init__(self, channel: grpc.aio.Channel, service: HealthService, met: dict[str, bool]) -> None:
        self.service = service
        self.met = met
        self._channel = channel

    async def check(self, service: str) -> bytes:
        call = self._channel.unary_unary("/grpc.health.v1.Health/Check", bytes, bytes)
        answer: bytes = await call(encoded(service))
        return answer

    async def list(self) -> bytes:
        answer: bytes = await self._channel.unary_unary("/grpc.health.v1.Health/List", bytes, bytes)(b"")
        return answer

    def watch(self, service: str) -> AsyncIterator[bytes]:
        call = self._channel.unary_stream("/grpc.health.v1.Health/Watch", bytes, bytes)
        return aiter(call(encoded(service)))


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[Daemon]:
    met = {"RuntimeReady": True, "ImageStoreReady": True, "NetworkReady": False}

    async def conditions() -> list[Condition]:
        return [Condition(name, each, "" if each else "Broken") for name, each in met.items()]

    service = HealthService(conditions, interval=0.01)
    server = CriServer(directory / "pvecri.sock", None, None, service)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"unix:{directory}/pvecri.sock") as channel:
            yield Daemon(channel, service, met)
    finally:
        await server.close(grace=0)


@pytest.mark.parametrize(
    ("unmet", "expected"),
    [
        (None, {"": SERVING, RUNTIME: SERVING, IMAGES: SERVING}),
        ("ImageStoreReady", {"": SERVING, RUNTIME: SERVING, IMAGES: NOT_SERVING}),
        ("RuntimeReady", {"": NOT_SERVING, RUNTIME: NOT_SERVING, IMAGES: SERVING}),
    ],
)
async def test_a_service_is_serving_while_its_condition_is_met(
    tmp_path: Path, unmet: str | None, expected: dict[str, bytes]
) -> None:
    async with serving(tmp_path) as daemon:
        if unmet:
            daemon.met[unmet] = False
        assert {service: await daemon.check(service) for service in expected} == expected


async def test_check_of_a_service_that_is_not_served_is_not_found(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await daemon.check("runtime.v1alpha2.RuntimeService")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_list_has_every_service(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon:
        listed = pb.HealthListResponse.FromString(await daemon.list())
    assert {name: each.SerializeToString() for name, each in listed.statuses.items()} == {
        "": SERVING,
        RUNTIME: SERVING,
        IMAGES: SERVING,
    }


async def test_watch_sends_the_status_now_and_each_change(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon:
        statuses = daemon.watch(RUNTIME)
        assert await anext(statuses) == SERVING
        daemon.met["RuntimeReady"] = False
        assert await anext(statuses) == NOT_SERVING
        daemon.met["RuntimeReady"] = True
        assert await anext(statuses) == SERVING


async def test_watch_of_a_service_that_is_not_served_stays_open(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon:
        statuses = daemon.watch("nothing")
        assert await anext(statuses) == SERVICE_UNKNOWN
        daemon.service.close()
        assert [each async for each in statuses] == []


async def test_daemon_that_stops_is_not_serving_and_ends_watches(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon:
        statuses = daemon.watch("")
        assert await anext(statuses) == SERVING
        daemon.service.close()
        assert [each async for each in statuses] == [NOT_SERVING]
        assert {service: await daemon.check(service) for service in BROKEN} == BROKEN


async def test_failure_names_what_keeps_clients_from_connecting(tmp_path: Path) -> None:
    server = CriServer(tmp_path / "pvecri.sock", None, None)
    assert server.failure == "NotServing"
    await server.start()
    assert server.failure == ""
    (tmp_path / "pvecri.sock").rename(tmp_path / "moved")
    assert server.failure == "SocketReplaced"
    other = await asyncio.start_unix_server(lambda *_: None, tmp_path / "pvecri.sock")
    assert server.failure == "SocketReplaced"
    other.close()
    (tmp_path / "moved").rename(tmp_path / "pvecri.sock")
    assert server.failure == ""
    await server.close(grace=0)
    assert server.failure == "NotServing"
