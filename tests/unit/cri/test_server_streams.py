# SPDX-License-Identifier: Apache-2.0
"""Streamed answers over a real socket: when they begin, how they end, and what a client can do to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from pvecri.cri import responses_stats
from pvecri.cri.proto import cri_pb2 as pb
from pvecri.cri.proto.cri_pb2_grpc import RuntimeServiceStub
from pvecri.cri.server import CriServer
from pvecri.errors import NotFound
from pvecri.model import Sandbox, SandboxConfig, SandboxId, SandboxMetadata, SandboxPhase
from pvecri.pods.events import Event, EventKind, Events, Subscription

METADATA = SandboxMetadata(name="web", namespace="default", uid="1")
SANDBOX = Sandbox(
    id=SandboxId("p" * 64),
    config=SandboxConfig(metadata=METADATA, annotations={"large": "x" * 10_000}),
    created_at=1,
    phase=SandboxPhase.READY,
)
EVENT = Event(SANDBOX.id, EventKind.STARTED, 1, SANDBOX, ())


class Service:
    """The calls that are tried here. `ended` is set when a stream of events is no longer served."""

    def __init__(self) -> None:
        self.events = Events(backlog=50)
        self.ended = asyncio.Event()

    def get_container_events(self, _: pb.GetEventsRequest) -> AsyncIterator[pb.ContainerEventResponse]:
        return self._messages(self.events.subscribe())

    async def _messages(self, subscription: Subscription) -> AsyncIterator[pb.ContainerEventResponse]:
        try:
            async for event in subscription:
                yield responses_stats.event(event)
        finally:
            self.ended.set()

    async def stream_containers(self, _: pb.StreamContainersRequest) -> AsyncIterator[pb.StreamContainersResponse]:
        yield pb.StreamContainersResponse(containers=[pb.Container(id="a")])
        raise NotFound("the rest does not exist")


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    made = Service()
    server = CriServer(tmp_path / "s", made, made)
    await server.start()
    yield made
    made.events.close()
    await server.close(grace=0)


@pytest.fixture
async def client(tmp_path: Path, service: Service) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(f"unix:{tmp_path / 's'}") as channel:
        yield RuntimeServiceStub(channel)  # type: ignore[no-untyped-call]


async def listening(client: Any) -> Any:
    call = client.GetContainerEvents(pb.GetEventsRequest())
    await call.initial_metadata()
    return call


async def test_initial_metadata_is_sent_when_the_subscription_begins(service: Service, client: Any) -> None:
    call = await listening(client)
    service.events.publish(EVENT)
    assert (await call.read()).container_id == SANDBOX.id


async def test_slow_client_is_dropped_with_an_error(service: Service, client: Any) -> None:
    call = await listening(client)
    for _ in range(51):
        service.events.publish(EVENT)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call.read()
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_cancelled_stream_ends_the_subscription(service: Service, client: Any) -> None:
    call = await listening(client)
    call.cancel()
    await service.ended.wait()


async def test_error_in_a_stream_follows_the_sent_messages(client: Any) -> None:
    call = client.StreamContainers(pb.StreamContainersRequest())
    assert [each.id for each in (await call.read()).containers] == ["a"]
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call.read()
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


async def test_stream_without_a_method_is_unimplemented(client: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await client.StreamPodSandboxes(pb.StreamPodSandboxesRequest()).read()
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
