# SPDX-License-Identifier: Apache-2.0
"""A client's stream holds a bounded amount, and both of its ends learn when the other is done."""

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


def stream(carrier: Recorder | None = None) -> PeerStream:
    return PeerStream(1, carrier or Recorder(), Activity())


async def never() -> None:
    await asyncio.Event().wait()


async def at_once() -> None:
    return


async def test_what_is_fed_is_read_in_order_and_then_comes_the_end() -> None:
    peer = stream()
    peer.feed(b"one")
    peer.feed(b"two")
    peer.feed_end()

    assert [await peer.read() for _ in range(4)] == [b"one", b"two", b"", b""]


async def test_a_full_stream_takes_more_only_when_something_was_read() -> None:
    peer = stream()
    peer.feed(bytes(LIMIT))
    waiting = asyncio.create_task(peer.wait_for_room(never))
    await asyncio.sleep(0)

    assert not peer.has_room
    await peer.read()
    await waiting


async def test_many_small_chunks_fill_a_stream_too() -> None:
    peer = stream()

    count = 0
    while peer.has_room:
        peer.feed(b"x")
        count += 1

    assert count < LIMIT // 50


async def test_waiting_for_room_ends_when_the_client_leaves() -> None:
    peer = stream()
    peer.feed(bytes(LIMIT))

    with pytest.raises(BrokenPipeError):
        await peer.wait_for_room(at_once)


async def test_a_stream_that_nobody_reads_drops_what_comes() -> None:
    peer = stream()
    peer.feed(bytes(LIMIT))
    peer.discard()
    peer.feed(b"more")

    assert peer.has_room
    peer.feed_end()
    assert await peer.read() == b""


async def test_after_a_reset_what_had_come_is_read_and_nothing_is_written() -> None:
    peer = stream()
    peer.feed(b"rest")
    peer.reset()

    assert [await peer.read(), await peer.read()] == [b"rest", b""]
    with pytest.raises(BrokenPipeError):
        await peer.write(b"late")


async def test_a_stream_is_finished_once() -> None:
    carrier = Recorder()
    peer = stream(carrier)
    await peer.write(b"data")
    await peer.finish()
    await peer.finish()

    assert carrier.sent == [b"data", None]
    with pytest.raises(BrokenPipeError):
        await peer.write(b"late")


async def test_sizes_are_followed_until_the_client_sends_something_else() -> None:
    peer = stream()
    peer.feed(b'{"Width": 80, "Height": 24}{"Width": 81, "Height": 24}')
    peer.feed(b"nonsense")
    sizes = PeerSizes(peer)

    assert [await sizes.next() for _ in range(3)] == [TerminalSize(80, 24), TerminalSize(81, 24), None]
