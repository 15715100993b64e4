# SPDX-License-Identifier: Apache-2.0
"""Byte streams with back-pressure in both directions: the interface, and TCP with or without TLS."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import Protocol

from pvecri.linux.fds import peer_gone

READ_SIZE = 32 << 10
WRITE_BUFFER = 64 << 10
"""Unsent bytes above which a writer waits."""

LINGER = 5.0
"""Seconds for a client to close its side after ours was shut down."""

KEEPALIVE_IDLE = 60
"""Seconds without traffic before the kernel sends TCP keepalive probes."""


class Transport(Protocol):
    """A bidirectional byte stream. Any number of tasks may write, one may read."""

    async def read(self) -> bytes:
        """The next bytes; empty at EOF, also if the connection is lost."""
        ...

    async def write(self, data: bytes) -> None:
        """Send, and return once there is room for more; BrokenPipeError if the peer has gone."""
        ...

    async def gone(self) -> None:
        """Return once the peer has gone, even while received data is unread."""
        ...

    async def close(self) -> None:
        """Flush, then close. Idempotent."""
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
        """Put back bytes that belong to the next protocol."""
        self._head = data + self._head

    async def read(self) -> bytes:
        """See Transport."""
        head, self._head = self._head, b""
        try:
            return head or await self._reader.read(READ_SIZE)
        except OSError:  # ECONNRESET and TLS errors: to the reader a lost connection is one that has ended
            return b""

    async def write(self, data: bytes) -> None:
        """See Transport."""
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError as error:
            raise BrokenPipeError("the client has disconnected") from error
        if self._writer.is_closing():  # drain does not raise for a connection that was closed cleanly
            raise BrokenPipeError("the client has disconnected")

    async def gone(self) -> None:
        """See Transport."""
        if self._writer.is_closing():
            return
        watches = {asyncio.create_task(self._closed()), asyncio.create_task(peer_gone(self._fd))}
        try:
            await asyncio.wait(watches, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for watch in watches:
                watch.cancel()

    async def close(self) -> None:
        """See Transport.

        close(2) with unread data makes the kernel send RST, on which the peer drops data that it has not read. So
        shut down sending, and read to EOF for LINGER seconds.
        """
        # Whatever fails here, the connection is closed at once below.
        with suppress(OSError, TimeoutError):
            if not self._writer.is_closing():
                async with asyncio.timeout(LINGER):
                    await self._writer.drain()
                    if self._writer.can_write_eof():  # TLS in asyncio has no half-close
                        self._writer.write_eof()
                    while await self._reader.read(READ_SIZE):
                        pass
        self.abort()

    def abort(self) -> None:
        """Close at once; unsent data is discarded. Idempotent."""
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
    # A client whose machine is gone sends no FIN: without probes its command would run until
    # streaming.idle_timeout.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
