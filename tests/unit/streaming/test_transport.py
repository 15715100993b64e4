# SPDX-License-Identifier: Apache-2.0
"""What waits for the end of a connection, and what is left of that."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
from contextlib import suppress

import pytest

from pvecri.streaming.transport import TcpTransport

RESET = struct.pack("ii", 1, 0)
"""struct linger: closing resets the connection."""


async def test_many_waits_for_a_connection_that_is_reset_leave_no_task_and_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    accepted: asyncio.Future[TcpTransport] = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(
        lambda reader, writer: accepted.set_result(TcpTransport(reader, writer)), "127.0.0.1", 0
    )
    async with server:
        peer = socket.create_connection(server.sockets[0].getsockname())
        wire = await accepted
        before = len(asyncio.all_tasks())
        for _ in range(20):
            waiting = asyncio.create_task(wire.gone())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            waiting.cancel()
            with suppress(asyncio.CancelledError):
                await waiting
            await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) <= before + 1
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        peer.close()
        await wire.gone()
        assert await wire.read() == b""
        wire.abort()
        while len(asyncio.all_tasks()) > 1:
            await asyncio.sleep(0)
    gc.collect()
    assert [each.getMessage() for each in caplog.records if each.name == "asyncio"] == []
