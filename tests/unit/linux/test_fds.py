# SPDX-License-Identifier: Apache-2.0
"""Pipes and ptys are read and written as far as their other side goes along."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import termios
from collections.abc import Iterator
from fcntl import ioctl

import pytest

from pvecri.linux.fds import AsyncFd, peer_gone


@pytest.fixture
def pipe() -> Iterator[tuple[AsyncFd, AsyncFd]]:
    reader, writer = (AsyncFd(fd) for fd in os.pipe())
    yield reader, writer
    reader.close()
    writer.close()


async def test_what_is_written_is_read_and_then_comes_the_end(pipe: tuple[AsyncFd, AsyncFd]) -> None:
    reader, writer = pipe
    await writer.write(b"data")
    writer.close()

    assert [await reader.read(), await reader.read()] == [b"data", b""]


async def test_more_than_a_pipe_holds_waits_for_the_reader(pipe: tuple[AsyncFd, AsyncFd]) -> None:
    reader, writer = pipe
    writing = asyncio.create_task(writer.write(bytes(1 << 20)))

    count = 0
    while count < 1 << 20:
        count += len(await reader.read())

    await writing


async def test_a_reader_that_waits_ends_with_what_is_there(pipe: tuple[AsyncFd, AsyncFd]) -> None:
    reader, writer = pipe
    await writer.write(b"rest")
    assert await reader.read() == b"rest"
    waiting = asyncio.create_task(reader.read())
    await asyncio.sleep(0)

    reader.end_when_empty()

    assert await waiting == b""


async def test_writing_to_nobody_is_a_broken_pipe(pipe: tuple[AsyncFd, AsyncFd]) -> None:
    reader, writer = pipe
    reader.close()

    with pytest.raises(BrokenPipeError):
        await writer.write(b"data")


async def test_a_pty_ends_when_nobody_has_its_other_side_open_and_has_a_size() -> None:
    fd, slave = os.openpty()
    master = AsyncFd(fd)
    master.resize(111, 33)
    assert struct.unpack("=HHHH", ioctl(slave, termios.TIOCGWINSZ, bytes(8)))[:2] == (33, 111)
    os.write(slave, b"last words")
    os.close(slave)

    assert [await master.read(), await master.read()] == [b"last words", b""]
    master.close()


async def test_a_peer_that_leaves_is_noticed_before_its_words_are_read() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.sendall(b"unread")
        waiting = asyncio.create_task(peer_gone(ours.fileno()))
        await asyncio.sleep(0)
        assert not waiting.done()
        theirs.close()
        await waiting
