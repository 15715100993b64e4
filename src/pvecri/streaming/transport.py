# SPDX-License-Identifier: Apache-2.0
"""A connection as a byte stream that is read only when asked and written only as fast as the peer takes it."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import Protocol

from pvecri.linux.fds import peer_gone

READ_SIZE = 32 << 10
WRITE_BUFFER = 64 << 10
"""Bytes that wait to be sent before a writer has to wait."""

LINGER = 5.0
"""Seconds in which a client that was told that all is done closes its side."""

KEEPALIVE_IDLE = 60
"""Seconds of silence after which the kernel asks whether a client is still there."""


class Transport(Protocol):
    """Bytes both ways. Any number of tasks may write, one may read."""

    async def read(self) -> bytes:
        """The next bytes; empty when the peer is gone."""
        ...

    async def write(self, data: bytes) -> None:
        """Send, and return when there is room for more; BrokenPipeError when the peer is gone."""
        ...

    async def gone(self) -> None:
        """Return when the peer has gone, also while what it sent before is unread."""
        ...

    async def close(self) -> None:
        """Let the peer have all that was written, then close. Idempotent."""
        ...


class TcpTransport:
    """A TCP connection, with or without TLS."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._head = b""
        self._closing: asyncio.Task[None] | None = None
        writer.transport.set_write_buffer_limits(high=WRITE_BUFFER)
        _keep_alive(writer)

    def unread(self, data: bytes) -> None:
        """Put back what was read too much."""
        self._head = data + self._head

    async def read(self) -> bytes:
        """As Transport has it."""
        head, self._head = self._head, b""
        try:
            return head or await self._reader.read(READ_SIZE)
        except OSError:
            return b""

    async def write(self, data: bytes) -> None:
        """As Transport has it."""
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError as error:
            raise BrokenPipeError("the client is gone") from error
        if self._writer.is_closing():
            raise BrokenPipeError("the client is gone")

    async def gone(self) -> None:
        """As Transport has it."""
        if self._writer.is_closing():
            return
        watches = {asyncio.create_task(self._closed()), asyncio.create_task(peer_gone(self._fd))}
        try:
            await asyncio.wait(watches, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for watch in watches:
                watch.cancel()

    async def close(self) -> None:
        """As Transport has it.

        A socket that is closed with unread bytes makes the kernel drop what the peer has not read yet, so what
        still comes is read, for LINGER seconds.
        """
        with suppress(OSError, TimeoutError):
            if not self._writer.is_closing():
                async with asyncio.timeout(LINGER):
                    await self._writer.drain()
                    if self._writer.can_write_eof():
                        self._writer.write_eof()
                    while await self._reader.read(READ_SIZE):
                        pass
        self.abort()

    def abort(self) -> None:
        """Close at once; what was not sent is dropped. Idempotent."""
        self._writer.transport.abort()

    async def _closed(self) -> None:
        """Until the connection has ended, however it did."""
        if self._closing is None:  # one for all waits: each lasts as long as the connection
            self._closing = asyncio.create_task(self._wait_closed())
        await asyncio.shield(self._closing)  # cancelled, it would cancel asyncio's own future

    async def _wait_closed(self) -> None:
        with suppress(OSError):  # a reset; nobody may be waiting any more
            await self._writer.wait_closed()

    @property
    def _fd(self) -> int:
        connection: socket.socket = self._writer.get_extra_info("socket")
        return connection.fileno()


def _keep_alive(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
