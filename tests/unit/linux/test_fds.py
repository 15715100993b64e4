# SPDX-License-Identifier: Apache-2.0
"""Pipes, ptys and sockets in the event loop: waiting, EOF and errors."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Iterator

import pytest

from pvecri.linux.fds import AsyncFd, peer_gone


@pytest.fixture
def pipe() -> Iterator[tuple[AsyncFd, AsyncFd]]:
    """A pipe's end to read from and its end to write to."""
    reader, writer = map(AsyncFd, os.pipe())
    yield reader, writer
    reader.close()
    writer.close()


async def test_read_returns_written_bytes_then_eof(pipe: tuple[AsyncFd, AsyncFd]) -> None:
    reader, writer = pipe
    await writer.write(b"one")
    assert await reader.read(2) == b"on"
    assert await reader.read(2) == b"e"
    writer.close()
    assert await reader.read() == b""


async def test_read_waits_for_data(pipe: tuple[AsyncFd, AsyncFd]) -> None:
    reader, writer = pipe
    reading = asyncio.create_task(reader.read())
    await asyncio.sleep(0)
    assert not reading.done()
    await writer.write(b"late")
    assert await reading == b"late"


async def test_write_waits_for_the_reader(pipe: tuple[AsyncFd, AsyncFd]) -> None:
    reader, writer = pipe
    data = os.urandom(3 << 18)  # more than a pipe's capacity
    writing = asyncio.create_task(writer.write(data))
    await asyncio.sleep(0)
    assert not writing.done()
    received = b""
    while len(received) < len(data):
        received += await reader.read()
    await writing
    assert received == data


async def test_cancelled_read_loses_no_data(pipe: tuple[AsyncFd, AsyncFd]) -> None:
    reader, writer = pipe
    reading = asyncio.create_task(reader.read())
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await writer.write(b"for the next")
    assert await reader.read() == b"for the next"


async def test_write_without_a_reader_is_a_broken_pipe(pipe: tuple[AsyncFd, AsyncFd]) -> None:
    reader, writer = pipe
    reader.close()
    with pytest.raises(BrokenPipeError):
        await writer.write(b"x")


async def test_end_when_empty_drains_the_pipe(pipe: tuple[AsyncFd, AsyncFd]) -> None:
    reader, writer = pipe
    await writer.write(b"rest")
    reader.end_when_empty()
    assert [await reader.read(), await reader.read()] == [b"rest", b""]


async def test_end_when_empty_wakes_a_waiting_reader(pipe: tuple[AsyncFd, AsyncFd]) -> None:
    reader, _ = pipe
    reading = asyncio.create_task(reader.read())
    await asyncio.sleep(0)
    reader.end_when_empty()
    assert await reading == b""


def test_close_is_idempotent(pipe: tuple[AsyncFd, AsyncFd]) -> None:
    reader, writer = pipe
    number = reader.fd
    reader.close()
    os.dup2(writer.fd, number)
    reader.close()
    assert os.fstat(number)
    os.close(number)


# -- ptys ----------------------------------------------------------------------------------------------------


async def test_pty_reads_eof_after_its_slave_closes() -> None:
    master, slave = os.openpty()
    terminal = AsyncFd(master)
    os.write(slave, b"bye")
    os.close(slave)
    assert [await terminal.read(), await terminal.read()] == [b"bye", b""]
    terminal.close()


async def test_resize_sets_the_window_size() -> None:
    master, slave = os.openpty()
    terminal = AsyncFd(master)
    terminal.resize(columns=132, rows=43)
    size = struct.unpack("=HHHH", fcntl.ioctl(slave, termios.TIOCGWINSZ, bytes(8)))
    assert size[:2] == (43, 132)
    os.close(slave)
    terminal.close()


# -- sockets -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unread", [b"", b"came before"])
async def test_peer_gone_with_unread_data(unread: bytes) -> None:
    ours, peers = socket.socketpair()
    with ours:
        watching = asyncio.create_task(peer_gone(ours.fileno()))
        await asyncio.sleep(0)
        peers.sendall(unread)
        await asyncio.sleep(0)
        assert not watching.done()
        peers.close()
        await watching
        assert ours.recv(100) == unread
