# SPDX-License-Identifier: Apache-2.0
"""ttrpc calls in both directions, their errors and their timeouts."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from google.protobuf.message import Message

from pvecri.errors import DeadlineExceeded
from pvecri.nri import frames
from pvecri.nri.errors import CallFailed, PluginGone
from pvecri.nri.frames import Connection, MessageType
from pvecri.nri.proto import nri_pb2 as pb
from pvecri.nri.proto import ttrpc_pb2
from pvecri.nri.ttrpc import Code, Serve, TtrpcConnection


async def greet(method: str, payload: bytes) -> Message:
    """Answers every call with its request's name in front."""
    name = pb.RegisterPluginRequest.FromString(payload).plugin_name
    return pb.RegisterPluginRequest(plugin_name=f"{method} {name}")


async def refuse(method: str, _: bytes) -> Message:
    """Answers no call."""
    raise CallFailed(Code.UNIMPLEMENTED, f"no {method}")


async def stumble(_method: str, _payload: bytes) -> Message:
    """Has a fault."""
    raise OverflowError("too large")


async def never(_method: str, _payload: bytes) -> Message:
    """Does not response."""
    await asyncio.Event().wait()
    raise AssertionError


@asynccontextmanager
async def connected(runtime: Serve, plugin: Serve) -> AsyncIterator[tuple[TtrpcConnection, TtrpcConnection]]:
    """The runtime's side and the plugin's."""
    connections: list[TtrpcConnection] = []
    for end, ours, serve in zip(socket.socketpair(), reversed(Connection), (runtime, plugin), strict=True):
        reader, writer = await asyncio.open_unix_connection(sock=end)
        connections.append(TtrpcConnection(reader, writer, ours, serve))
    runners = [asyncio.create_task(connection.run()) for connection in connections]
    try:
        yield connections[0], connections[1]
    finally:
        for connection in connections:
            connection.close()
        await asyncio.gather(*runners)


def named(name: str) -> pb.RegisterPluginRequest:
    """A message with a text."""
    return pb.RegisterPluginRequest(plugin_name=name)


async def test_both_sides_call_concurrently() -> None:
    async with connected(greet, greet) as sides:
        calls = [
            side.call(f"M{n}", named(str(n)), pb.RegisterPluginRequest, 10) for n in range(20) for side in sides
        ]
        responses = [response.plugin_name for response in await asyncio.gather(*calls)]
    assert responses == [f"M{n} {n}" for n in range(20) for _ in range(2)]


async def test_large_message_is_delivered() -> None:
    async with connected(greet, greet) as (runtime, _):
        text = "x" * (frames.MAX_DATA - 100)
        response = await runtime.call("M", named(text), pb.RegisterPluginRequest, 30)
    assert response.plugin_name == f"M {text}"


async def test_sending_an_oversized_message_is_refused() -> None:
    async with connected(greet, greet) as (runtime, _):
        with pytest.raises(CallFailed) as raised:
            await runtime.call("M", named("x" * (frames.MAX_DATA + 1)), pb.Empty, 10)
    assert raised.value.code == Code.RESOURCE_EXHAUSTED


async def test_error_status_and_message_reach_the_caller() -> None:
    async with connected(greet, refuse) as (runtime, _):
        with pytest.raises(CallFailed, match="no Configure") as raised:
            await runtime.call("Configure", pb.Empty(), pb.Empty, 10)
    assert raised.value.code == Code.UNIMPLEMENTED


async def test_call_times_out() -> None:
    async with connected(greet, never) as (runtime, _):
        with pytest.raises(DeadlineExceeded, match="Configure"):
            await runtime.call("Configure", pb.Empty(), pb.Empty, 0.01)


async def test_pending_calls_fail_if_the_connection_closes() -> None:
    async with connected(greet, never) as (runtime, plugin):
        calling = asyncio.create_task(runtime.call("Configure", pb.Empty(), pb.Empty, 60))
        await asyncio.sleep(0)
        plugin.close()
        with pytest.raises(PluginGone):
            await calling
        with pytest.raises(PluginGone):
            await runtime.call("Configure", pb.Empty(), pb.Empty, 60)


@pytest.mark.parametrize(
    ("stream", "service", "code"),
    [
        (2, "nri.pkg.api.v1alpha1.Runtime", Code.INVALID_ARGUMENT),
        (1, "nri.pkg.api.v1alpha1.Runtime", Code.INVALID_ARGUMENT),
        (5, "nri.pkg.api.v1alpha1.Plugin", Code.UNIMPLEMENTED),
    ],
)
async def test_invalid_request_gets_an_error_response(stream: int, service: str, code: int) -> None:
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    connection = TtrpcConnection(reader, writer, Connection.RUNTIME, greet)
    running = asyncio.create_task(connection.run())
    try:
        assert (await raw_call(theirs, 1, "nri.pkg.api.v1alpha1.Runtime")).status.code == Code.OK
        assert (await raw_call(theirs, stream, service)).status.code == code
    finally:
        theirs.close()
        await running


async def raw_call(sock: socket.socket, stream: int, service: str) -> ttrpc_pb2.Response:
    """A call in bytes; its response."""
    request = ttrpc_pb2.Request(service=service, method="M").SerializeToString()
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    frame = frames.Message(Connection.RUNTIME, stream, MessageType.REQUEST, request)
    await loop.sock_sendall(sock, frames.encode(frame))
    responses = list(frames.Reader().feed(await loop.sock_recv(sock, 4096)))
    assert [response.stream for response in responses] == [stream]
    return ttrpc_pb2.Response.FromString(responses[0].data or b"")


async def test_a_fault_is_answered_and_logged_and_the_connection_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    async with connected(stumble, greet) as (runtime, plugin):
        with pytest.raises(CallFailed, match="OverflowError: too large") as failed:
            await plugin.call("M", named("a"), pb.Empty, 10)
        assert failed.value.code == Code.INTERNAL
        assert (await runtime.call("M", named("b"), pb.RegisterPluginRequest, 10)).plugin_name == "M b"
    (logged,) = [each for each in caplog.records if each.exc_info]
    assert "too large" in logged.getMessage()
