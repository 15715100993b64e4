# SPDX-License-Identifier: Apache-2.0
"""The gRPC server on a real socket: every call of the interface is answered, and errors by their status."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from support import figures

from pvecri import errors
from pvecri.config.settings import ConfigError
from pvecri.cri.image_service import ImageService
from pvecri.cri.proto import cri_pb2 as pb
from pvecri.cri.runtime_service import RuntimeService
from pvecri.cri.server import CriServer, snake_case
from pvecri.errors import CommandError, InvalidArgument, PvecriError

SERVICES = {"RuntimeService": RuntimeService, "ImageService": ImageService}
CALLS = [(service, method) for service in SERVICES for method in pb.DESCRIPTOR.services_by_name[service].methods]
EACH_CALL = pytest.mark.parametrize(
    ("service", "method"), CALLS, ids=[f"{service}.{method.name}" for service, method in CALLS]
)

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, PvecriError)]


Unary = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]


class Answers:
    """A service that answers the calls it is given, by their Python names."""

    def __init__(self, **calls: Callable[[Any], Any]) -> None:
        self.__dict__.update(calls)


@asynccontextmanager
async def serving(path: Path, runtime: object = None, image: object = None) -> AsyncIterator[grpc.aio.Channel]:
    """A server of these services, and a channel to it."""
    server = CriServer(path, runtime, image)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
            yield channel
    finally:
        await server.close(grace=0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "pvecri.sock"


async def call(channel: grpc.aio.Channel, service: str, method: Any, request: Message | None = None) -> list[Any]:
    """Make a call, streamed or not; all that is answered."""
    path = f"/runtime.v1.{service}/{method.name}"
    answer = GetMessageClass(method.output_type).FromString
    message = request or GetMessageClass(method.input_type)()
    serialize: Callable[[Any], bytes] = type(message).SerializeToString
    if method.server_streaming:
        return [each async for each in channel.unary_stream(path, serialize, answer)(message)]
    return [await channel.unary_unary(path, serialize, answer)(message)]


async def version(channel: grpc.aio.Channel) -> Any:
    method = pb.DESCRIPTOR.services_by_name["RuntimeService"].methods_by_name["Version"]
    return (await call(channel, "RuntimeService", method))[0]


def raising(error: BaseException) -> Callable[[Any], Awaitable[Message]]:
    async def behaviour(_: object) -> Message:
        raise error

    return behaviour


# -- the calls -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "snake"),
    [
        ("Version", "version"),
        ("RunPodSandbox", "run_pod_sandbox"),
        ("ImageFsInfo", "image_fs_info"),
        ("GetContainerEvents", "get_container_events"),
        ("UpdatePodSandboxResources", "update_pod_sandbox_resources"),
    ],
)
def test_call_names_become_snake_case(name: str, snake: str) -> None:
    assert snake_case(name) == snake


@EACH_CALL
async def test_call_without_a_method_is_unimplemented(path: Path, service: str, method: Any) -> None:
    async with serving(path) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, service, method)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert caught.value.details() == f"pvecri does not have {method.name}"


@EACH_CALL
async def test_call_is_dispatched_to_the_method_of_its_name(path: Path, service: str, method: Any) -> None:
    asked: list[Message] = []
    answer = GetMessageClass(method.output_type)()

    async def unary(request: Message) -> Message:
        asked.append(request)
        return answer

    async def streamed(request: Message) -> AsyncIterator[Message]:
        asked.append(request)
        yield answer
        yield answer

    answers = Answers(**{snake_case(method.name): streamed if method.server_streaming else unary})
    services = (answers, None) if service == "RuntimeService" else (None, answers)
    async with serving(path, *services) as channel:
        assert await call(channel, service, method) == [answer] * (2 if method.server_streaming else 1)
    assert [type(each) for each in asked] == [GetMessageClass(method.input_type)]


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_has_no_public_method_that_no_call_leads_to(service: str) -> None:
    calls = {snake_case(method.name) for name, method in CALLS if name == service}
    assert {name for name in dir(SERVICES[service]) if not name.startswith("_")} - calls == set()


async def test_unknown_service_is_unimplemented(path: Path) -> None:
    async with serving(path) as channel:
        older: Unary = channel.unary_unary("/runtime.v1alpha2.RuntimeService/Version")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await older(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


# -- errors --------------------------------------------------------------------------------------------------


def an_error(kind: type[PvecriError]) -> PvecriError:
    if issubclass(kind, InvalidArgument):
        return kind("config.hostname", "is wrong")
    if issubclass(kind, CommandError):
        return kind("runc", 1, "is broken")
    return kind("something is wrong")


@pytest.mark.parametrize("kind", KINDS)
async def test_pvecri_error_is_returned_with_status_and_message(path: Path, kind: type[PvecriError]) -> None:
    error = an_error(kind)
    async with serving(path, Answers(version=raising(error))) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await version(channel)
    assert (caught.value.code().name, caught.value.details()) == (kind.status, str(error))


async def test_unexpected_exception_is_internal_and_logged_with_traceback(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(path, Answers(version=raising(ZeroDivisionError("by 0")))) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await version(channel)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert caught.value.details() == "Version: ZeroDivisionError: by 0"
    logged = [record for record in caplog.records if record.name == "pvecri.cri.server"]
    assert [(record.levelno, record.exc_info is not None) for record in logged] == [(logging.ERROR, True)]


async def test_stream_error_follows_the_sent_messages(path: Path) -> None:
    async def events(_: object) -> AsyncIterator[Message]:
        yield pb.ContainerEventResponse(container_id="c1")
        raise errors.ResourceExhausted("too slow")

    method = pb.DESCRIPTOR.services_by_name["RuntimeService"].methods_by_name["GetContainerEvents"]
    received: list[str] = []

    async def read(stream: AsyncIterator[pb.ContainerEventResponse]) -> None:
        async for each in stream:
            received.append(each.container_id)

    async with serving(path, Answers(get_container_events=events)) as channel:
        stream = channel.unary_stream(
            f"/runtime.v1.RuntimeService/{method.name}",
            pb.GetEventsRequest.SerializeToString,
            pb.ContainerEventResponse.FromString,
        )(pb.GetEventsRequest())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read(aiter(stream))
    assert received == ["c1"]
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "too slow")


async def test_client_cancellation_cancels_the_call(path: Path) -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def slow(_: object) -> Message:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    async with serving(path, Answers(version=slow)) as channel:
        asked = asyncio.create_task(version(channel))
        await began.wait()
        asked.cancel()
        await ended.wait()


async def test_calls_do_not_wait_for_each_other(path: Path) -> None:
    together = asyncio.Barrier(5)

    async def meeting(_: object) -> Message:
        await together.wait()
        return pb.VersionResponse(version="v")

    async with serving(path, Answers(version=meeting)) as channel:
        answers = await asyncio.gather(*(version(channel) for _ in range(together.parties)))
    assert [each.version for each in answers] == ["v"] * 5


async def test_two_full_exec_sync_streams_fit_into_a_message(path: Path) -> None:
    full = pb.ExecSyncResponse(stdout=bytes(16 << 20), stderr=bytes(16 << 20))

    async def exec_sync(_: object) -> Message:
        return full

    server = CriServer(path, Answers(exec_sync=exec_sync), None)
    await server.start()
    unlimited = [("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(f"unix:{path}", options=unlimited) as channel:
        ask: Unary = channel.unary_unary("/runtime.v1.RuntimeService/ExecSync")
        assert len(await ask(b"")) == full.ByteSize()
    await server.close(grace=0)


# -- the socket ----------------------------------------------------------------------------------------------


async def test_socket_has_mode_0600_and_is_removed_on_close(path: Path) -> None:
    async with serving(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.stat().st_uid == os.getuid()
    assert not path.exists()


async def test_stale_socket_of_a_killed_daemon_is_replaced(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    async with serving(path, Answers(version=raising(errors.NotFound("here")))) as channel:
        with pytest.raises(grpc.aio.AioRpcError, match="here"):
            await version(channel)


async def test_socket_in_use_is_not_replaced(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(ConfigError, match=rf"^runtime\.socket: another process listens on {path}$"):
            await CriServer(path, None, None).start()
        assert path.is_socket()


async def test_close_ends_wait(path: Path) -> None:
    server = CriServer(path, None, None)
    await server.start()
    waiting = asyncio.create_task(server.wait())
    await server.close(grace=0)
    await waiting


async def test_calls_are_counted_by_their_status_and_while_they_last(path: Path) -> None:
    under_way: list[float] = []

    async def refuse(_: object) -> Message:
        under_way.append(figures.value("cri_calls_in_flight", method="StopContainer"))
        raise errors.NotFound("no container")

    def counted(code: str) -> float:
        return figures.value("cri_calls_total", method="StopContainer", code=code)

    before, timed = counted("NOT_FOUND"), figures.value("cri_call_duration_seconds_count", method="StopContainer")
    method = pb.DESCRIPTOR.services_by_name["RuntimeService"].methods_by_name["StopContainer"]
    async with serving(path, Answers(stop_container=refuse)) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await call(channel, "RuntimeService", method)
    assert counted("NOT_FOUND") == before + 1
    assert figures.value("cri_call_duration_seconds_count", method="StopContainer") == timed + 1
    assert (under_way, figures.value("cri_calls_in_flight", method="StopContainer")) == ([1], 0)


async def test_a_call_without_a_method_is_counted_as_unimplemented(path: Path) -> None:
    before = figures.value("cri_calls_total", method="Version", code="UNIMPLEMENTED")
    async with serving(path) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await version(channel)
    assert figures.value("cri_calls_total", method="Version", code="UNIMPLEMENTED") == before + 1
