# SPDX-License-Identifier: Apache-2.0
"""Calls over a real socket are operations with the caller's trace ID."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from pvecri.cri.proto import cri_pb2 as pb
from pvecri.cri.server import REQUEST_ID, CriServer
from pvecri.errors import NotFound
from pvecri.observability import correlation
from pvecri.observability.correlation import Operation

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
METADATA = (("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01"),)


class Runtime:
    """Records the operation of each call."""

    def __init__(self) -> None:
        self.operations: list[Operation | None] = []

    async def stop_container(self, _: pb.StopContainerRequest) -> pb.StopContainerResponse:
        self.operations.append(correlation.current())
        return pb.StopContainerResponse()

    async def version(self, _: pb.VersionRequest) -> pb.VersionResponse:
        self.operations.append(correlation.current())
        raise NotFound("nothing")

    async def get_container_events(self, _: pb.GetEventsRequest) -> AsyncIterator[pb.ContainerEventResponse]:
        self.operations.append(correlation.current())
        yield pb.ContainerEventResponse()
        self.operations.append(correlation.current())
        raise NotFound("nothing")


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[tuple[Runtime, grpc.aio.Channel]]:
    runtime = Runtime()
    server = CriServer(tmp_path / "pvecri.sock", runtime, None)
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/pvecri.sock") as channel:
        yield runtime, channel
    await server.close(grace=0)


async def stop_container(channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...] = ()) -> None:
    serialize = pb.StopContainerRequest.SerializeToString
    path = "/runtime.v1.RuntimeService/StopContainer"
    call: grpc.aio.UnaryUnaryMultiCallable[pb.StopContainerRequest, bytes] = channel.unary_unary(path, serialize)
    await call(pb.StopContainerRequest(container_id="c1"), metadata=metadata)


async def test_call_has_the_callers_trace_id_and_what_it_names(runtime: tuple[Runtime, grpc.aio.Channel]) -> None:
    service, channel = runtime
    await stop_container(channel, METADATA)
    assert service.operations == [Operation(TRACE, "StopContainer", fields={"container_id": "c1"})]


async def test_calls_without_a_trace_get_different_ids(runtime: tuple[Runtime, grpc.aio.Channel]) -> None:
    service, channel = runtime
    await stop_container(channel)
    await stop_container(channel, (("traceparent", "invalid"),))
    assert len({each.id for each in service.operations if each and len(each.id) == 32}) == 2


async def test_error_carries_the_id(runtime: tuple[Runtime, grpc.aio.Channel]) -> None:
    service, channel = runtime
    call = channel.unary_unary("/runtime.v1.RuntimeService/Version", bytes, bytes)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"", metadata=METADATA)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert (REQUEST_ID, TRACE) in tuple(caught.value.trailing_metadata())
    assert {each.id for each in service.operations if each} == {TRACE}


async def test_stream_is_one_operation_to_its_error(runtime: tuple[Runtime, grpc.aio.Channel]) -> None:
    service, channel = runtime
    call = channel.unary_stream("/runtime.v1.RuntimeService/GetContainerEvents", bytes, bytes)
    stream = aiter(call(b"", metadata=METADATA))
    await anext(stream)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await anext(stream)
    assert (REQUEST_ID, TRACE) in tuple(caught.value.trailing_metadata())
    first, second = service.operations
    assert first is second
    assert first is not None
    assert (first.id, first.name) == (TRACE, "GetContainerEvents")
