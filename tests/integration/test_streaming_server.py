# SPDX-License-Identifier: Apache-2.0
"""The streaming server over real sockets: access, protocols, malformed input."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import pytest
from support import figures
from support.streaming_client import (
    SPDY_COMMANDS,
    TRANSPORTS,
    CommandClient,
    Outcome,
    Refused,
    SpdyClient,
    SpdyCommand,
    WebSocketCommand,
    dial,
    request,
)

from pvecri.config.settings import ConfigError, StreamingConfig
from pvecri.errors import FailedPrecondition
from pvecri.linux import processes
from pvecri.streaming.remotecommand import StreamType
from pvecri.streaming.requests import CommandRequest, ForwardRequest, Kind
from pvecri.streaming.server import MAX_UNAUTHENTICATED, StreamingServer
from pvecri.streaming.streams import CommandStreams

STDIN, STDOUT = StreamType.STDIN, StreamType.STDOUT
SPDY = [("upgrade", "SPDY/3.1"), ("x-stream-protocol-version", "v4.channel.k8s.io")]

T = TypeVar("T")


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> type[CommandClient]:
    return TRANSPORTS[request.param]


@asynccontextmanager
async def serving(config: StreamingConfig | None = None) -> AsyncIterator[StreamingServer]:
    server = StreamingServer(config or StreamingConfig())
    await server.start()
    try:
        yield server
    finally:
        await server.close()


def command(run: Callable[[CommandStreams], Awaitable[int]], *, tty: bool = False) -> CommandRequest:
    """A command with stdin and stdout."""
    return CommandRequest(Kind.EXEC, stdin=True, stdout=True, stderr=False, tty=tty, run=run)


async def echo(streams: CommandStreams) -> int:
    """Writes what it reads."""
    assert streams.stdin is not None
    assert streams.stdout is not None
    while data := await streams.stdin.read():
        await streams.stdout.write(data)
    return 3


async def in_thread(work: Callable[[], T]) -> T:
    """Clients block; the server needs the loop."""
    return await asyncio.to_thread(work)


def converse(client: CommandClient) -> Outcome:
    client.send(STDIN, b"hello")
    client.finish(STDIN)
    return client.outcome()


def self_signed(directory: Path) -> tuple[Path, Path]:
    """A certificate and its key."""
    certificate, key = directory / "crt", directory / "key"
    openssl = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    subprocess.run([*openssl, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return certificate, key


# -- who is let in ---------------------------------------------------------------------------------------------


async def test_a_url_can_be_used_once() -> None:
    async with serving() as server:
        url = server.url(command(echo))
        outcome = await in_thread(lambda: converse(SpdyCommand(url, STDIN, STDOUT)))
        assert (outcome.stdout, outcome.exit_code) == (b"hello", 3)
        with pytest.raises(Refused, match="404: unknown, used or expired"):
            await in_thread(lambda: SpdyCommand(url, STDIN, STDOUT))


@pytest.mark.parametrize(
    ("change", "headers", "method", "answer"),
    [
        (lambda url: url + "x", SPDY, "POST", "404"),
        (lambda url: url.replace("/exec/", "/attach/"), SPDY, "POST", "404"),
        (lambda url: url.replace("/exec/", "/"), SPDY, "POST", "404"),
        (lambda url: url, SPDY, "PUT", "405"),
        (lambda url: url, [("upgrade", "websocket")], "POST", "405"),
        (lambda url: url, [("upgrade", "websocket")], "GET", "400"),
        (lambda url: url, [("upgrade", "h2c")], "POST", "400: an upgrade to SPDY/3.1 or WebSocket"),
        (lambda url: url, SPDY[:1], "POST", "400: the header x-stream-protocol-version is required"),
        (lambda url: url, [*SPDY[:1], ("x-stream-protocol-version", "v9")], "POST", "403: no common protocol"),
        (lambda url: url, [*SPDY, ("padding", "x" * 20_000)], "POST", "431"),
    ],
)
async def test_invalid_request_is_refused(
    change: Callable[[str], str], headers: list[tuple[str, str]], method: str, answer: str
) -> None:
    async with serving() as server:
        url = change(server.url(command(echo)))
        with await in_thread(lambda: dial(url)) as connection, pytest.raises(Refused, match=answer):
            await in_thread(lambda: request(connection, url, headers, method))


async def test_session_above_the_limit_is_refused() -> None:
    async with serving(StreamingConfig(max_sessions=1)) as server:
        first = await in_thread(lambda: SpdyCommand(server.url(command(echo)), STDIN, STDOUT))
        with pytest.raises(Refused, match=r"503: streaming\.max_sessions \(1\) is reached"):
            await in_thread(lambda: SpdyCommand(server.url(command(echo)), STDIN, STDOUT))
        assert (await in_thread(lambda: converse(first))).exit_code == 3


@pytest.mark.parametrize(("protocol", "client"), [("spdy", SpdyCommand), ("websocket", WebSocketCommand)])
async def test_sessions_are_counted_while_they_are_open_and_refusals_by_status(
    protocol: str, client: type[CommandClient]
) -> None:
    def counted() -> tuple[float, ...]:
        return (
            figures.value("streaming_sessions_total", kind="exec", protocol=protocol),
            figures.value("streaming_refusals_total", code="503"),
        )

    def running() -> float:
        return figures.value("streaming_sessions_in_flight", kind="exec")

    before = counted()
    async with serving(StreamingConfig(max_sessions=1)) as server:
        session = await in_thread(lambda: client(server.url(command(echo)), STDIN, STDOUT))
        with pytest.raises(Refused, match="503"):
            await in_thread(lambda: client(server.url(command(echo)), STDIN, STDOUT))
        assert running() == 1
        await in_thread(lambda: converse(session))
    assert running() == 0
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [1, 1]


async def test_connections_without_a_request_do_not_block_clients() -> None:
    async with serving(StreamingConfig(max_sessions=1)) as server:
        url = server.url(command(echo))
        idle = [await in_thread(lambda: dial(url)) for _ in range(MAX_UNAUTHENTICATED + 10)]
        assert await in_thread(lambda: idle[0].recv(1)) == b""
        assert (await in_thread(lambda: converse(SpdyCommand(url, STDIN, STDOUT)))).exit_code == 3
        for connection in idle:
            connection.close()


async def test_server_with_a_certificate_uses_https() -> None:
    async with serving(StreamingConfig(max_sessions=1)) as server:
        url = server.url(command(echo))
        address = (urlsplit(url).hostname, urlsplit(url).port)
        before = processes.open_files(os.getpid())[1]
        burst = []
        for _ in range(20):  # within the listening socket's backlog, while the server does not run
            for _ in range(50):
                connection = socket.socket()
                connection.setblocking(False)
                connection.connect_ex(address)
                burst.append(connection)
            await asyncio.sleep(0)
        for _ in range(100):
            await asyncio.sleep(0)
        open_here = processes.open_files(os.getpid())[1] - before - len(burst)
        assert open_here <= MAX_UNAUTHENTICATED
        assert (await in_thread(lambda: converse(SpdyCommand(url, STDIN, STDOUT)))).exit_code == 3
        for connection in burst:
            connection.close()


async def test_with_a_certificate_the_server_speaks_https(tmp_path: Path, transport: type[CommandClient]) -> None:
    certificate, key = await in_thread(lambda: self_signed(tmp_path))
    async with serving(StreamingConfig(tls_cert=certificate, tls_key=key)) as server:
        url = server.url(command(echo))
        assert url.startswith("https://127.0.0.1:")
        outcome = await in_thread(lambda: converse(transport(url, STDIN, STDOUT)))
    assert (outcome.stdout, outcome.exit_code) == (b"hello", 3)


async def test_error_for_an_address_in_use_names_the_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        server = StreamingServer(StreamingConfig(port=other.getsockname()[1]))
        with pytest.raises(ConfigError, match=r"streaming\.port"):
            await server.start()


# -- protocols -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", SPDY_COMMANDS)
async def test_every_protocol_version_works_over_spdy(protocol: str) -> None:
    async with serving() as server:
        url = server.url(command(echo))
        outcome = await in_thread(lambda: converse(SpdyCommand(url, STDIN, STDOUT, protocols=[protocol])))
    assert outcome.stdout == b"hello"
    if protocol == "v4.channel.k8s.io":
        assert outcome.exit_code == 3
    else:
        assert outcome.status == b"command terminated with non-zero exit code: 3"


@pytest.mark.parametrize(
    "protocol", ["v4.channel.k8s.io", "v4.base64.channel.k8s.io", "base64.channel.k8s.io", ""]
)
async def test_protocol_versions_without_a_close_signal_work_over_websocket(protocol: str) -> None:
    async def first(streams: CommandStreams) -> int:
        assert streams.stdin is not None
        assert streams.stdout is not None
        await streams.stdout.write(await streams.stdin.read())
        return 0

    async with serving() as server:
        url = server.url(command(first))
        client = await in_thread(lambda: WebSocketCommand(url, protocols=[protocol]))
        client.send(STDIN, b"hello")
        assert (await in_thread(client.outcome)).stdout == b"hello"
    assert (client.protocol or "") == protocol


async def test_failure_is_in_the_status(transport: type[CommandClient]) -> None:
    async def fail(_: CommandStreams) -> int:
        raise FailedPrecondition("container web is exited, not running")

    async with serving() as server:
        url = server.url(command(fail))
        outcome = await in_thread(lambda: transport(url, STDIN, STDOUT).outcome())
    assert json.loads(outcome.status)["message"] == "container web is exited, not running"


async def test_unrequested_stream_is_refused() -> None:
    async with serving() as server:
        client = await in_thread(lambda: SpdyClient(server.url(command(echo)), SPDY_COMMANDS))
        stream = await in_thread(lambda: client.open(streamtype="stderr"))
        assert stream in client.ended
        client.close()


# -- what it survives ------------------------------------------------------------------------------------------


class Endless:
    """A command that runs until it is cancelled."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def run(self, _: CommandStreams) -> int:
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()
        return 0


async def test_command_is_cancelled_if_its_client_disconnects(transport: type[CommandClient]) -> None:
    endless = Endless()
    async with serving() as server:
        client = await in_thread(lambda: transport(server.url(command(endless.run)), STDIN, STDOUT))
        await endless.started.wait()
        client.leave()
        await endless.cancelled.wait()


async def test_idle_connection_is_closed(transport: type[CommandClient]) -> None:
    endless = Endless()
    async with serving(StreamingConfig(idle_timeout=0.05)) as server:
        outcome = await in_thread(lambda: transport(server.url(command(endless.run)), STDIN, STDOUT).outcome())
        await endless.cancelled.wait()
    assert outcome.status == b""


@pytest.mark.parametrize("garbage", [b"\x80\x02" + bytes(100), b"\x00" * 100, b"\xff" * 100])
async def test_malformed_frames_close_their_connection_only(
    transport: type[CommandClient], garbage: bytes
) -> None:
    endless = Endless()
    async with serving() as server:
        good = await in_thread(lambda: transport(server.url(command(echo)), STDIN, STDOUT))
        bad = await in_thread(lambda: transport(server.url(command(endless.run)), STDIN, STDOUT))
        await endless.started.wait()
        bad.connection.sendall(garbage)
        await endless.cancelled.wait()
        await in_thread(bad.outcome)
        assert (await in_thread(lambda: converse(good))).stdout == b"hello"


async def test_closing_the_server_cancels_sessions(transport: type[CommandClient]) -> None:
    endless = Endless()
    async with serving() as server:
        client = await in_thread(lambda: transport(server.url(command(endless.run)), STDIN, STDOUT))
        await endless.started.wait()
    assert endless.cancelled.is_set()
    client.leave()


# -- faults ----------------------------------------------------------------------------------------------------


async def test_unexpected_exception_is_sent_to_the_client_and_logged(
    transport: type[CommandClient], caplog: pytest.LogCaptureFixture
) -> None:
    async def stumble(streams: CommandStreams) -> int:
        raise OverflowError("too large")

    async with serving() as server:
        url = server.url(command(stumble))
        outcome = await in_thread(lambda: transport(url, STDIN, STDOUT).outcome())
    assert "exec: OverflowError: too large" in str(outcome)
    assert [each.getMessage() for each in caplog.records if each.exc_info] == ["exec: OverflowError: too large"]


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (FailedPrecondition("pod sandbox a is not ready"), b"pod sandbox a is not ready"),
        (OverflowError("too large"), b"OverflowError: too large"),
    ],
)
async def test_failed_connection_does_not_end_others(failure: Exception, told: bytes) -> None:
    pods, ours = socket.socketpair()
    ours.setblocking(False)

    async def connect(port: int) -> socket.socket:
        if port == 81:
            raise failure
        return ours

    def converse_on_two_ports(url: str) -> tuple[bytes, bytes]:
        client = SpdyClient(url, ["portforward.k8s.io"])
        streams = {}
        for port in ("80", "81"):
            for kind in ("error", "data"):
                streams[kind, port] = client.open(streamtype=kind, port=port, requestid=port)
        client.wait(lambda: streams["error", "81"] in client.ended)
        client.send(streams["data", "80"], b"hello", fin=True)
        heard = b"".join(iter(lambda: pods.recv(100), b""))
        client.close()
        return bytes(client.received[streams["error", "81"]]), heard

    with pods, ours:
        async with serving() as server:
            url = server.url(ForwardRequest((), connect))
            assert await in_thread(lambda: converse_on_two_ports(url)) == (
                b"error forwarding port 81 to pod: " + told,
                b"hello",
            )
