# SPDX-License-Identifier: Apache-2.0
"""Buffer limits, EOF and reset of a client's stream."""

from __future__ import annotations

import asyncio

import pytest

from pvecri.streaming.remotecommand import TerminalSize
from pvecri.streaming.streams import LIMIT, Activity, PeerSizes, PeerStream


class Recorder:
    """A carrier that notes what it is to send."""

    def __init__(self) -> None:
        self.sent: list[bytes | None] = []

    async def send(self, stream: int, data: bytes) -> None:
        self.sent.append(data)

    async def send_end(self, stream: int) -> None:
        self.sent.append(None)

    async def send_reset(self, stream: int) -> None:
        self.sent.append(b"RST")


def stream(carrier: Recorder | None = None) -> PeerStream:
    return PeerStream(1, carrier or Recorder(), Activity())


async def never() -> None:
    await asyncio.Event().wait()


async def at_once() -> None:
    return


async def test_fed_data_is_read_in_order_then_eof() -> None:
    peer = stream()
    peer.feed(b"one")
    peer.feed(b"two")
    peer.feed_end()

    assert [await peer.read() for _ in range(4)] == [b"one", b"two", b"", b""]


async def test_full_stream_has_room_after_a_read() -> None:
    peer = stream()
    peer.feed(bytes(LIMIT))
    waiting = asyncio.create_task(peer.wait_for_room(never))
    await asyncio.sleep(0)

    assert not peer.has_room
    await peer.read()
    await waiting


async def test_small_chunks_count_against_the_limit() -> None:
    peer = stream()

    count = 0
    while peer.has_room:
        peer.feed(b"x")
        count += 1

    assert count < LIMIT // 50


async def test_wait_for_room_ends_if_the_client_leaves() -> None:
    peer = stream()
    peer.feed(bytes(LIMIT))

    with pytest.raises(BrokenPipeError):
        await peer.wait_for_room(at_once)


async def test_discarded_stream_drops_data() -> None:
    peer = stream()
    peer.feed(bytes(LIMIT))
    peer.discard()
    peer.feed(b"more")

    assert peer.has_room
    peer.feed_end()
    assert await peer.read() == b""


async def test_reset_stream_is_readable_and_not_writable() -> None:
    peer = stream()
    peer.feed(b"rest")
    peer.reset()

    assert [await peer.read(), await peer.read()] == [b"rest", b""]
    with pytest.raises(BrokenPipeError):
        await peer.write(b"late")


async def test_finish_is_idempotent() -> None:
    carrier = Recorder()
    peer = stream(carrier)
    await peer.write(b"data")
    await peer.finish()
    await peer.finish()

    assert carrier.sent == [b"data", None]
    with pytest.raises(BrokenPipeError):
        await peer.write(b"late")


async def test_sizes_end_at_malformed_input() -> None:
    peer = stream()
    peer.feed(b'{"Width": 80, "Height": 24}{"Width": 81, "Height": 24}')
    peer.feed(b"nonsense")
    sizes = PeerSizes(peer)

    assert [await sizes.next() for _ in range(3)] == [TerminalSize(80, 24), TerminalSize(81, 24), None]


async def test_aborted_stream_is_reset_once_and_takes_nothing_more() -> None:
    carrier = Recorder()
    peer = stream(carrier)

    await peer.abort()
    await peer.abort()
    await peer.finish()

    assert (carrier.sent, await peer.read()) == ([b"RST"], b"")
    with pytest.raises(BrokenPipeError):
        await peer.write(b"x")


async def test_stream_that_the_client_has_reset_is_not_reset_again() -> None:
    carrier = Recorder()
    peer = stream(carrier)

    peer.reset()
    await peer.abort()

    assert carrier.sent == []
