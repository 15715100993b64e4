# SPDX-License-Identifier: Apache-2.0
"""Exec and Attach over SPDY or WebSocket: the command's streams and its exit status."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from pvecri.errors import DeadlineExceeded, PvecriError
from pvecri.streaming import remotecommand
from pvecri.streaming.remotecommand import CHANNELS, StreamType, Version
from pvecri.streaming.requests import CommandRequest
from pvecri.streaming.session import serve
from pvecri.streaming.spdy_connection import SpdyConnection
from pvecri.streaming.spdy_headers import Headers
from pvecri.streaming.streams import Activity, CommandStreams, PeerSizes, PeerStream
from pvecri.streaming.transport import Transport
from pvecri.streaming.websocket import ChannelConnection, WebSocket
from pvecri.supervision import describe, report

log = logging.getLogger(__name__)

STREAM_CREATION_TIMEOUT = 30.0
"""Seconds for a SPDY client to open the streams that it requested; the kubelet's streamCreationTimeout."""


def requested_streams(request: CommandRequest, version: Version) -> set[StreamType]:
    """The streams of a command."""
    requested = {
        StreamType.ERROR: True,
        StreamType.STDIN: request.stdin,
        StreamType.STDOUT: request.stdout,
        StreamType.STDERR: request.stderr,
        StreamType.RESIZE: request.tty and version.resize,
    }
    return {kind for kind, yes in requested.items() if yes}


async def serve_over_spdy(
    request: CommandRequest, version: Version, transport: Transport, idle_timeout: float
) -> None:
    """Run the command for a SPDY client, which opens its streams one by one."""
    activity = Activity()
    collector = _StreamCollector(requested_streams(request, version))
    connection = SpdyConnection(transport, activity, collector.add)

    async def work() -> None:
        await _run(request, version, await collector.complete())

    await serve(connection, work(), activity, idle_timeout)


async def serve_over_websocket(
    request: CommandRequest, version: Version, websocket: WebSocket, idle_timeout: float
) -> None:
    """Run the command for a WebSocket client, whose channels exist from the start."""
    activity = Activity()
    connection = ChannelConnection(websocket, activity, version.framing, len(CHANNELS))
    streams = dict(zip(CHANNELS, connection.streams, strict=True))
    unused = streams.keys() - requested_streams(request, version)
    for kind in unused:
        streams.pop(kind).discard()

    async def work() -> None:
        # As from the kubelet: an empty message notifies the client that the connection is established.
        first = next(kind for kind in (*CHANNELS[1:3], StreamType.ERROR) if kind in streams)
        await streams[first].write(b"")
        await _run(request, version, streams)

    await serve(connection, work(), activity, idle_timeout)


class _StreamCollector:
    """Collects the streams that a SPDY client opens until all requested ones are open."""

    def __init__(self, kinds: set[StreamType]) -> None:
        self._missing = kinds
        self._streams: dict[StreamType, PeerStream] = {}
        self._complete = asyncio.Event()

    def add(self, stream: PeerStream, headers: Headers) -> bool:
        kind = next((kind for kind in self._missing if kind.value == headers.get("streamtype")), None)
        if kind is None:
            return False
        self._streams[kind] = stream
        self._missing.discard(kind)
        if not self._missing:
            self._complete.set()
        return True

    async def complete(self) -> Mapping[StreamType, PeerStream]:
        try:
            async with asyncio.timeout(STREAM_CREATION_TIMEOUT):
                await self._complete.wait()
        except TimeoutError:
            missing = ", ".join(sorted(kind.value for kind in self._missing))
            raise DeadlineExceeded(
                f"the client did not open these streams within {STREAM_CREATION_TIMEOUT:g} s: {missing}"
            ) from None
        return self._streams


async def _run(request: CommandRequest, version: Version, streams: Mapping[StreamType, PeerStream]) -> None:
    """Run the command, send its status on the error stream, and half-close all streams."""
    resize = streams.get(StreamType.RESIZE)
    command = CommandStreams(
        stdin=streams.get(StreamType.STDIN),
        stdout=streams.get(StreamType.STDOUT),
        stderr=streams.get(StreamType.STDERR),
        sizes=PeerSizes(resize) if resize else None,
    )
    try:
        status = remotecommand.exit_status(version, await request.run(command))
    except PvecriError as error:
        log.info("%s: %s: %s", request.kind.value, error.status, error)
        status = remotecommand.failure_status(version, str(error))
    except Exception as error:  # a fault: the client gets it as any other failure
        report(error, "streaming connection", request.kind.value)
        status = remotecommand.failure_status(version, f"{request.kind.value}: {describe(error)}")
    # Before the status: a stdin that nobody reads any more would stop the whole connection (decision 0031).
    for stream in streams.values():
        stream.discard()
    if status:
        await streams[StreamType.ERROR].write(status)
    for stream in streams.values():
        await stream.finish()
