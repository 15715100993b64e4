# SPDX-License-Identifier: Apache-2.0
"""SPDY frames round-trip in any fragmentation; malformed ones are refused."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvecri.streaming.errors import ProtocolError
from pvecri.streaming.spdy_frames import (
    MAX_CONTROL,
    Data,
    Flag,
    Frame,
    FrameReader,
    GoAway,
    MoreHeaders,
    Ping,
    RstStream,
    Settings,
    SynReply,
    SynStream,
    WindowUpdate,
    encode,
)

WORDS = st.integers(0, 2**32 - 1)
STREAMS = st.integers(1, 2**31 - 1)
FIN = st.sampled_from([Flag.NONE, Flag.FIN])
BLOCKS = st.binary(max_size=40)
CONTROL_FRAMES: st.SearchStrategy[Frame] = st.one_of(
    st.builds(SynStream, STREAMS, st.sampled_from(list(Flag)), BLOCKS),
    st.builds(SynReply, STREAMS, FIN, BLOCKS),
    st.builds(MoreHeaders, STREAMS, FIN, BLOCKS),
    st.builds(RstStream, STREAMS, WORDS),
    st.builds(Settings, st.lists(st.tuples(st.integers(0, 2**24 - 1), WORDS), max_size=4).map(tuple)),
    st.builds(Ping, WORDS),
    st.builds(GoAway, st.integers(0, 2**31 - 1), WORDS),
    st.builds(WindowUpdate, st.integers(0, 2**31 - 1), st.integers(1, 2**31 - 1)),
)
FRAMES = st.one_of(CONTROL_FRAMES, st.builds(Data, STREAMS, FIN, st.binary(max_size=40)))


def read(*pieces: bytes) -> list[Frame]:
    """The frames of bytes that come in pieces; pieces of one data frame put together again."""
    reader = FrameReader()
    frames: list[Frame] = []
    continued = False
    for piece in pieces:
        for frame in reader.receive(piece):
            last = frames[-1] if continued else None
            if isinstance(last, Data) and isinstance(frame, Data):
                frames[-1] = Data(frame.stream, frame.flags, last.payload + frame.payload)
            else:
                frames.append(frame)
            continued = reader.in_payload
    return frames


@given(st.lists(FRAMES, max_size=6))
def test_frames_round_trip(frames: list[Frame]) -> None:
    assert read(b"".join(map(encode, frames))) == frames


@given(st.lists(FRAMES, min_size=1, max_size=3))
def test_frames_are_parsed_in_any_fragmentation(frames: list[Frame]) -> None:
    data = b"".join(map(encode, frames))

    for at in range(len(data) + 1):
        assert read(data[:at], data[at:]) == frames
    assert read(*(data[at : at + 1] for at in range(len(data)))) == frames


def test_large_data_frame_is_delivered_in_pieces() -> None:
    reader = FrameReader()
    data = encode(Data(1, Flag.FIN, bytes(1 << 20)))

    payloads = [frame for at in range(0, len(data), 1000) for frame in reader.receive(data[at : at + 1000])]

    assert sum(len(frame.payload) for frame in payloads if isinstance(frame, Data)) == 1 << 20
    assert [frame.flags for frame in payloads if isinstance(frame, Data) and frame.flags] == [Flag.FIN]
    assert reader.buffered == 0


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"\0\0\0\0" + b"\0\0\0\0", "stream 0"),
        (b"\x80\x02\0\6" + b"\0\0\0\4" + b"\0\0\0\1", "version 2"),
        (b"\x80\3\0\6" + b"\0\0\0\5" + b"\0\0\0\1\0", "PING frame: 5 bytes, not 4"),
        (b"\x80\3\0\3" + b"\0\0\0\x08" + bytes(8), "RST_STREAM frame: stream 0"),
        (b"\x80\3\0\4" + b"\0\0\0\4" + b"\0\0\0\1", "do not fit its number of entries"),
        (b"\x80\3\0\1" + b"\0\0\0\x09" + bytes(9), "SYN_STREAM frame: 9 bytes are too few"),
        (b"\x80\3\0\x09" + b"\0\0\0\x08" + b"\0\0\0\1\0\0\0\0", "by 0 bytes"),
        (b"\x80\3\0\1" + b"\0\xff\xff\xff", f"more than {MAX_CONTROL}"),
    ],
)
def test_malformed_frame_is_refused(data: bytes, problem: str) -> None:
    with pytest.raises(ProtocolError, match=problem):
        read(data)


def test_unknown_control_frame_is_skipped() -> None:
    unknown = b"\x80\3\0\x0b" + b"\0\0\0\x06" + b"unread"

    assert read(unknown + encode(Ping(7))) == [Ping(7)]


@given(st.lists(st.binary(max_size=60), max_size=20))
def test_arbitrary_bytes_are_parsed_or_refused_in_bounded_memory(pieces: list[bytes]) -> None:
    reader = FrameReader()

    with suppress(ProtocolError):
        for piece in pieces:
            list(reader.receive(piece))
            assert reader.buffered <= MAX_CONTROL + 8
