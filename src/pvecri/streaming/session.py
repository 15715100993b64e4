# SPDX-License-Identifier: Apache-2.0
"""Serving one connection: until its work is done, the client disconnects, or it is idle for too long."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Protocol

from pvecri.streaming.errors import ProtocolError
from pvecri.streaming.streams import Activity
from pvecri.supervision import report

log = logging.getLogger(__name__)


class Connection(Protocol):
    """A connection of either protocol, SPDY or WebSocket channels."""

    async def run(self) -> None:
        """Read until the client disconnects; ProtocolError if it violates the protocol."""
        ...

    async def close(self) -> None:
        """Close cleanly, after the client has received everything. Not while `run` runs."""
        ...


async def serve(
    connection: Connection, work: Coroutine[None, None, None], activity: Activity, idle_timeout: float
) -> None:
    """Run `work` and the connection's reader until either is done, or idle for `idle_timeout` seconds.

    Unfinished work is cancelled.
    """
    reading = asyncio.create_task(connection.run(), name="streaming: read")
    working = asyncio.create_task(work, name="streaming: work")
    idle = asyncio.create_task(activity.wait_idle(idle_timeout), name="streaming: idle")
    tasks = (reading, working, idle)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if idle.done():
            log.info("streaming connection closed: idle for streaming.idle_timeout (%g s)", idle_timeout)
    finally:
        for task in tasks:
            task.cancel()
        endings = await asyncio.gather(*tasks, return_exceptions=True)
        _report(endings)
    # Otherwise the client has gone or is idle, and the server aborts the connection.
    if endings[1] is None:
        await connection.close()


def _report(endings: Sequence[BaseException | None]) -> None:
    for ending in endings:
        if isinstance(ending, ProtocolError):
            log.info("streaming connection closed: %s", ending)
        elif isinstance(ending, Exception) and not isinstance(ending, BrokenPipeError):
            report(ending, "streaming connection", "a streaming connection failed")
