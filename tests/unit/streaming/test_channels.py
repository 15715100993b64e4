# SPDX-License-Identifier: Apache-2.0
"""Channel messages round-trip in any fragmentation."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvecri.streaming.channels import (
    BINARY,
    CLOSE,
    ChannelClosed,
    ChannelData,
    ChannelEvent,
    ChannelReader,
    Framing,
    encode,
)
from pvecri.streaming.errors import ProtocolError

BASE64 = Framing(base64=True)
CLOSING = Framing(close_signal=True)
FRAMINGS = st.sampled_from([BINARY, BASE64, CLOSING])
CHANNELS = 5


def read(framing: Framing, *fragments: bytes) -> list[ChannelEvent]:
    """The events of one message that comes in fragments."""
    reader = ChannelReader(framing, CHANNELS)
    last = len(fragments) - 1
    return [
        event
        for index, fragment in enumerate(fragments)
        for event in reader.receive(fragment, finished=index == last)
    ]


def payload(events: list[ChannelEvent]) -> bytes:
    return b"".join(event.payload for event in events if isinstance(event, ChannelData))


@given(FRAMINGS, st.integers(0, CHANNELS - 1), st.binary(min_size=1, max_size=30))
def test_message_round_trips_in_any_fragmentation(framing: Framing, channel: int, data: bytes) -> None:
    message = encode(framing, channel, data)

    for at in range(len(message) + 1):
        events = read(framing, message[:at], message[at:])
        assert payload(events) == data
        assert {event.channel for event in events} == {channel}


def test_message_without_payload_has_no_event() -> None:
    assert read(BINARY, b"\1") == []
    assert read(BINARY, b"") == []


def test_unknown_channel_is_skipped() -> None:
    assert read(BINARY, b"\7lost") == []
    assert read(BASE64, b"x" + b"bG9zdA==") == []


def test_close_signal_closes_its_channel() -> None:
    assert read(CLOSING, bytes((CLOSE, 0))) == [ChannelClosed(0)]
    assert read(CLOSING, b"\xff", b"\0") == [ChannelClosed(0)]


def test_close_signal_is_unknown_before_v5() -> None:
    assert read(BINARY, bytes((CLOSE, 0))) == []


@pytest.mark.parametrize("message", [b"\xff", b"\xff\0\0", b"\xff\x09"])
def test_malformed_close_signal_is_refused(message: bytes) -> None:
    with pytest.raises(ProtocolError, match="close signal"):
        read(CLOSING, message)


@pytest.mark.parametrize("message", [b"0!!!!", b"0YQ", b"0YQ=", b"0YQ==YQ="])
def test_malformed_base64_is_refused(message: bytes) -> None:
    with pytest.raises(ProtocolError, match="base64"):
        read(BASE64, message)


@given(FRAMINGS, st.lists(st.tuples(st.binary(max_size=20), st.booleans()), max_size=20))
def test_arbitrary_messages_are_parsed_or_refused_in_bounded_memory(
    framing: Framing, fragments: list[tuple[bytes, bool]]
) -> None:
    reader = ChannelReader(framing, CHANNELS)

    with suppress(ProtocolError):
        for fragment, finished in fragments:
            for event in reader.receive(fragment, finished=finished):
                assert event.channel < CHANNELS
            assert len(reader._buffer) < 4
