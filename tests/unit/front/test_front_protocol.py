# SPDX-License-Identifier: Apache-2.0
"""The frames of pvecri-runtime's protocol, over a pair of sockets: descriptors, disconnects, wrong clients."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvecri.errors import InternalError, InvalidArgument
from pvecri.front.protocol import FRAME_MAX, VERSION, Call, Connection, Disconnected


@pytest.fixture
def pair() -> Iterator[tuple[Connection, socket.socket]]:
    """The daemon's side and the client's."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Connection(ours), theirs


def descriptors() -> set[Path]:
    """Those of this process."""
    return set(Path("/proc/self/fd").iterdir())


def frame(kind: bytes, *fields: str | bytes) -> bytes:
    """A frame whose content is a list."""
    content = b"".join((field.encode() if isinstance(field, str) else field) + b"\0" for field in fields)
    return struct.pack("<Ic", len(content), kind) + content


async def received(client: socket.socket) -> tuple[bytes, bytes, list[int]]:
    """The kind, the content and the descriptors of the next frame from the daemon."""

    def read() -> tuple[bytes, bytes, list[int]]:
        header, fds, _, _ = socket.recv_fds(client, 5, 4)
        length, kind = struct.unpack("<Ic", header)
        content = b""
        while len(content) < length:
            content += client.recv(length - len(content))
        return kind, content, fds

    return await asyncio.to_thread(read)


async def test_call_has_directory_arguments_and_stdin(pair: tuple[Connection, socket.socket]) -> None:
    connection, client = pair
    reading, writing = os.pipe()
    data = frame(b"C", VERSION, "/bundle", "--root=R", "start", "", b"\xff\xfe")
    socket.send_fds(client, [data[:5]], [reading])
    os.close(reading)
    client.sendall(data[5:])
    call = await connection.call()
    assert (call.directory, call.arguments) == (Path("/bundle"), ("--root=R", "start", "", "\udcff\udcfe"))
    os.write(writing, b"hello")
    assert os.read(call.stdin, 10) == b"hello"
    assert not os.get_inheritable(call.stdin)
    os.close(call.stdin)
    os.close(writing)


async def test_call_comes_in_any_pieces(pair: tuple[Connection, socket.socket]) -> None:
    connection, client = pair
    reading = asyncio.ensure_future(connection.call())
    for byte in frame(b"C", VERSION, "/", "state", "web"):
        client.send(bytes([byte]))
        await asyncio.sleep(0)
    assert await reading == Call(Path("/"), ("state", "web"), -1)


async def test_only_one_descriptor_is_kept(pair: tuple[Connection, socket.socket]) -> None:
    connection, client = pair
    before = descriptors()
    socket.send_fds(client, [frame(b"C", VERSION, "/", "x")], [0, 0, 0])
    call = await connection.call()
    os.close(call.stdin)
    assert descriptors() == before


async def test_other_version_is_refused_with_what_to_do(pair: tuple[Connection, socket.socket]) -> None:
    connection, client = pair
    before = descriptors()
    socket.send_fds(client, [frame(b"C", "99", "/", "state", "web")], [0])
    with pytest.raises(InvalidArgument, match=r"version 99 of the protocol.*install both of the same pvecri"):
        await connection.call()
    assert descriptors() == before


@pytest.mark.parametrize("fields", [(), (VERSION,), ("",)])
async def test_call_without_version_or_directory_is_refused(
    pair: tuple[Connection, socket.socket], fields: tuple[str, ...]
) -> None:
    connection, client = pair
    client.sendall(frame(b"C", *fields))
    with pytest.raises((InvalidArgument, InternalError)):
        await connection.call()


@pytest.mark.parametrize(
    "data", [b"", b"\x05", struct.pack("<Ic", 100, b"C"), struct.pack("<Ic", 100, b"C") + b"1\0/"]
)
async def test_end_of_the_client_is_a_disconnect(pair: tuple[Connection, socket.socket], data: bytes) -> None:
    connection, client = pair
    client.sendall(data)
    client.close()
    with pytest.raises(Disconnected):
        await connection.call()


@pytest.mark.parametrize("header", [(FRAME_MAX + 1, b"C"), (0xFFFFFFFF, b"C"), (5, b"G"), (0, b"\0")])
async def test_wrong_frames_are_refused_before_their_content(
    pair: tuple[Connection, socket.socket], header: tuple[int, bytes]
) -> None:
    connection, client = pair
    client.sendall(struct.pack("<Ic", *header))
    with pytest.raises(InternalError, match=f"a frame {header[1]!r} of {header[0]} bytes".replace("\\", r"\\")):
        await connection.call()


async def test_answers_have_their_kinds(pair: tuple[Connection, socket.socket]) -> None:
    connection, client = pair
    await connection.write(b"text\n")
    await connection.exit(255)
    await connection.fail("why ✗")
    await connection.execute(["/bin/ps", "-f"])
    assert [await received(client) for _ in range(4)] == [
        (b"o", b"text\n", []),
        (b"x", b"\xff", []),
        (b"f", "why ✗".encode(), []),
        (b"r", b"/bin/ps\0-f\0", []),
    ]


async def test_answer_larger_than_the_sockets_buffer_arrives(pair: tuple[Connection, socket.socket]) -> None:
    connection, client = pair
    text = os.urandom(3 << 20)
    _, (kind, content, _) = await asyncio.gather(connection.write(text), received(client))
    assert (kind, content) == (b"o", text)


async def test_answer_to_a_client_that_has_ended_is_a_disconnect(pair: tuple[Connection, socket.socket]) -> None:
    connection, client = pair
    client.close()
    with pytest.raises(Disconnected):
        await connection.write(b"text")


async def test_client_that_ends_while_it_is_answered_is_a_disconnect(
    pair: tuple[Connection, socket.socket],
) -> None:
    connection, client = pair
    writing = asyncio.ensure_future(connection.write(bytes(3 << 20)))
    await received_header(client)
    client.close()
    with pytest.raises(Disconnected):
        await writing


async def received_header(client: socket.socket) -> None:
    """Read the first bytes of an answer."""
    assert len(await asyncio.to_thread(client.recv, 5)) == 5


def launch(connection: Connection, started: list[int], namespace: Path | None = None) -> asyncio.Future[int]:
    """A launch under way; `started` gets the monitor's PID."""
    return asyncio.ensure_future(
        connection.launch(
            ["/usr/sbin/runc", "create", "web"],
            exit_file=Path("/exits/web"),
            pid_file=Path("/pid"),
            pid_namespace=namespace,
            started=started.append,
        )
    )


@pytest.mark.parametrize("namespace", [None, Path("/proc/self/ns/pid")])
async def test_launch_sends_files_command_and_pid_namespace(
    pair: tuple[Connection, socket.socket], namespace: Path | None
) -> None:
    connection, client = pair
    before, started = descriptors(), list[int]()
    launching = launch(connection, started, namespace)
    kind, content, fds = await received(client)
    assert (kind, content) == (b"l", b"/exits/web\0/pid\0/usr/sbin/runc\0create\0web\0")
    assert len(fds) == (0 if namespace is None else 1)
    for fd in fds:
        assert os.fstat(fd).st_ino == Path("/proc/self/ns/pid").stat().st_ino
        os.close(fd)
    client.sendall(frame(b"m", "4711") + frame(b"E", "137"))
    assert (await launching, started) == (137, [4711])
    assert descriptors() == before


async def test_monitor_is_known_before_the_command_has_ended(pair: tuple[Connection, socket.socket]) -> None:
    connection, client = pair
    started: list[int] = []
    launching = launch(connection, started)
    await received(client)
    client.sendall(frame(b"m", "4711"))
    while not started:
        await asyncio.sleep(0)
    assert not launching.done()
    client.close()
    with pytest.raises(Disconnected):
        await launching


@pytest.mark.parametrize("number", ["", "x", "1\x002", "1.5"])
async def test_wrong_answer_to_a_launch_is_an_error(pair: tuple[Connection, socket.socket], number: str) -> None:
    connection, client = pair
    before = descriptors()
    launching = launch(connection, [])
    await received(client)
    data = frame(b"m", number)
    socket.send_fds(client, [data[:5]], [0])
    client.sendall(data[5:])
    with pytest.raises(InternalError, match="for a number"):
        await launching
    assert descriptors() == before


async def test_client_that_ends_in_a_launch_is_a_disconnect(pair: tuple[Connection, socket.socket]) -> None:
    connection, client = pair
    launching = launch(connection, [])
    await received(client)
    client.close()
    with pytest.raises(Disconnected):
        await launching


async def test_program_runs_in_a_child_of_the_client(pair: tuple[Connection, socket.socket]) -> None:
    connection, client = pair
    running = asyncio.ensure_future(connection.run(["/usr/sbin/runc", "start", "web"]))
    assert await received(client) == (b"e", b"/usr/sbin/runc\0start\0web\0", [])
    client.sendall(frame(b"E", "1"))
    assert await running == 1
