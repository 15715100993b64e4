# SPDX-License-Identifier: Apache-2.0
"""ttrpc messages round-trip in any fragmentation of the trunk; invalid frames are refused."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvecri.nri.errors import ProtocolError
from pvecri.nri.frames import FIRST, MAX_DATA, Connection, Message, MessageType, Reader, encode

MESSAGES = st.builds(
    Message,
    st.sampled_from(list(Connection)),
    st.integers(0, 2**32 - 1),
    st.sampled_from([kind.value for kind in MessageType]),
    st.binary(max_size=3 * FIRST),
)
CUTS = st.lists(st.integers(1, 5000), min_size=1, max_size=20)


def pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    """The data in pieces of these sizes, over and over."""
    cut: list[bytes] = []
    while data:
        size = sizes[len(cut) % len(sizes)]
        cut.append(data[:size])
        data = data[size:]
    return cut


def trunk_frames(data: bytes) -> list[tuple[int, int]]:
    """Connection and payload length of each frame."""
    found: list[tuple[int, int]] = []
    while data:
        connection, length = struct.unpack_from(">II", data)
        found.append((connection, length))
        data = data[8 + length :]
    return found


@given(st.lists(MESSAGES, max_size=6), CUTS)
def test_messages_round_trip(messages: list[Message], cuts: list[int]) -> None:
    reader = Reader()
    data = b"".join(encode(message) for message in messages)
    assert [message for piece in pieces(data, cuts) for message in reader.feed(piece)] == messages


@given(MESSAGES, MESSAGES, CUTS)
def test_frames_of_two_connections_may_interleave(one: Message, two: Message, cuts: list[int]) -> None:
    one, two = (
        Message(connection, each.stream, each.kind, each.data)
        for connection, each in zip(Connection, (one, two), strict=True)
    )
    first, second = (pieces(_payload(encode(each)), cuts) for each in (one, two))
    frames = [
        struct.pack(">II", connection, len(part)) + part
        for pair in zip(first, second, strict=False)
        for connection, part in zip(Connection, pair, strict=True)
    ]
    rest = [(Connection.PLUGIN, part) for part in first[len(second) :]]
    rest += [(Connection.RUNTIME, part) for part in second[len(first) :]]
    frames += [struct.pack(">II", connection, len(part)) + part for connection, part in rest]
    reader = Reader()
    read = [message for frame in frames for message in reader.feed(frame)]
    assert sorted(read, key=lambda message: message.connection) == [one, two]


def _payload(data: bytes) -> bytes:
    joined = b""
    while data:
        _, length = struct.unpack_from(">II", data)
        joined += data[8 : 8 + length]
        data = data[8 + length :]
    return joined


@given(st.binary(max_size=400), CUTS)
def test_arbitrary_bytes_are_parsed_or_refused(data: bytes, cuts: list[int]) -> None:
    reader = Reader()
    with suppress(ProtocolError):
        for piece in pieces(data, cuts):
            list(reader.feed(piece))


@pytest.mark.parametrize(
    ("size", "lengths"),
    [(0, [10]), (FIRST - 10, [FIRST]), (FIRST - 9, [FIRST, 1]), (100_000, [FIRST, 100_010 - FIRST])],
)
def test_large_message_is_split_as_in_the_reference_implementation(size: int, lengths: list[int]) -> None:
    data = encode(Message(Connection.RUNTIME, 1, MessageType.REQUEST, b"x" * size))
    assert trunk_frames(data) == [(2, length) for length in lengths]


def test_oversized_message_is_skipped_and_reported() -> None:
    reader = Reader()
    header = struct.pack(">IIBB", MAX_DATA + 1, 7, MessageType.REQUEST, 0)
    data = header + b"x" * (MAX_DATA + 1)
    half = len(data) // 2
    trunk = b"".join(struct.pack(">II", 1, len(part)) + part for part in (data[:half], data[half:]))
    after = Message(Connection.PLUGIN, 9, MessageType.REQUEST, b"after")
    skipped = Message(Connection.PLUGIN, 7, MessageType.REQUEST, None)
    assert list(reader.feed(trunk + encode(after))) == [skipped, after]


def test_encoding_an_oversized_message_is_refused() -> None:
    with pytest.raises(ValueError, match="larger"):
        encode(Message(Connection.PLUGIN, 1, MessageType.REQUEST, b"x" * (MAX_DATA + 1)))


def test_frames_of_unknown_connections_are_skipped() -> None:
    message = Message(Connection.PLUGIN, 1, MessageType.RESPONSE, b"hello")
    assert list(Reader().feed(struct.pack(">II", 77, 5) + b"other" + encode(message))) == [message]


def test_oversized_trunk_frame_is_refused() -> None:
    with pytest.raises(ProtocolError):
        list(Reader().feed(struct.pack(">II", 1, MAX_DATA + 11)))
