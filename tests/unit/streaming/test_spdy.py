# SPDX-License-Identifier: Apache-2.0
"""The SPDY codec: both sides of a connection against each other, and protocol violations."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvecri.streaming import spdy_frames as frames
from pvecri.streaming.errors import ProtocolError
from pvecri.streaming.spdy import (
    DataReceived,
    Event,
    GoAwayReceived,
    PingReceived,
    Role,
    SpdyCodec,
    StreamFinished,
    StreamOpened,
    StreamRefused,
    StreamReplied,
    StreamReset,
)
from pvecri.streaming.spdy_frames import Flag, ResetStatus


def pair() -> tuple[SpdyCodec, SpdyCodec]:
    return SpdyCodec(Role.CLIENT), SpdyCodec(Role.SERVER)


def receive(codec: SpdyCodec, *pieces: bytes) -> list[Event]:
    return [event for piece in pieces for event in codec.receive(piece)]


def opened() -> tuple[SpdyCodec, SpdyCodec, int]:
    """A connection with one stream, open in both directions."""
    client, server = pair()
    stream, data = client.open({"streamtype": "stdin"})
    receive(server, data)
    receive(client, server.reply(stream))
    return client, server, stream


def test_syn_stream_is_accepted_with_syn_reply() -> None:
    client, server = pair()

    stream, data = client.open({"streamtype": "error"})

    assert receive(server, data) == [StreamOpened(stream, {"streamtype": "error"})]
    assert receive(client, server.reply(stream)) == [StreamReplied(stream)]


def test_stream_ids_are_odd_for_clients_and_even_for_servers() -> None:
    client, server = pair()

    assert [client.open({})[0] for _ in range(3)] == [1, 3, 5]
    assert [server.open({})[0] for _ in range(2)] == [2, 4]


def test_data_goes_both_ways() -> None:
    client, server, stream = opened()

    assert receive(server, client.data(stream, b"ping")) == [DataReceived(stream, b"ping")]
    assert receive(client, server.data(stream, b"pong")) == [DataReceived(stream, b"pong")]


def test_half_closed_stream_still_receives() -> None:
    client, server, stream = opened()

    assert receive(server, client.data(stream, b"last", fin=True)) == [
        DataReceived(stream, b"last"),
        StreamFinished(stream),
    ]
    assert receive(client, server.data(stream, b"more")) == [DataReceived(stream, b"more")]
    assert receive(client, server.data(stream, b"", fin=True)) == [StreamFinished(stream)]
    assert (client.streams, server.streams) == ([], [])


def test_no_data_is_sent_after_fin() -> None:
    client, _, stream = opened()
    client.data(stream, b"", fin=True)

    assert client.data(stream, b"late") == b""


def test_reset_closes_both_directions() -> None:
    client, server, stream = opened()

    assert receive(server, client.reset(stream, ResetStatus.CANCEL)) == [StreamReset(stream)]
    assert server.data(stream, b"late") == b""


def test_data_after_reset_is_dropped() -> None:
    client, server, stream = opened()
    server.reset(stream, ResetStatus.CANCEL)

    assert receive(server, client.data(stream, b"late", fin=True)) == []


def test_only_pings_of_the_peer_are_reported() -> None:
    client, server = pair()

    assert receive(server, client.ping(1)) == [PingReceived(1)]
    assert receive(client, server.ping(1)) == []


def test_stream_above_the_limit_is_refused() -> None:
    client, server = SpdyCodec(Role.CLIENT), SpdyCodec(Role.SERVER, max_streams=1)
    first, opening = client.open({})
    second, too_many = client.open({})

    events = receive(server, opening + too_many)

    assert events == [StreamOpened(first, {}), StreamRefused(second, ResetStatus.REFUSED_STREAM)]
    assert receive(client, server.reset(second, ResetStatus.REFUSED_STREAM)) == [StreamReset(second)]
    assert receive(server, client.data(first, b"on")) == [DataReceived(first, b"on")]


def test_settings_and_window_updates_are_ignored() -> None:
    client, server, stream = opened()
    settings = frames.encode(frames.Settings(((7, 1024),)))
    update = frames.encode(frames.WindowUpdate(stream, 100))

    assert receive(server, settings + update) == []
    assert len(server.data(stream, bytes(200_000))) > 200_000
    assert receive(server, client.data(stream, b"on")) == [DataReceived(stream, b"on")]


def test_streams_after_goaway_are_ignored() -> None:
    client, server = pair()
    goodbye = server.go_away()

    assert receive(client, goodbye) == [GoAwayReceived()]
    assert receive(server, client.open({})[1]) == []


@pytest.mark.parametrize("stream", [2, 1])
def test_out_of_order_stream_id_is_a_protocol_error(stream: int) -> None:
    client, server = pair()
    receive(server, client.open({})[1])
    block = SpdyCodec(Role.CLIENT).open({})[1][18:]

    with pytest.raises(ProtocolError):
        receive(server, frames.encode(frames.SynStream(stream, Flag.NONE, block)))


def test_data_for_an_unopened_stream_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="never opened"):
        receive(SpdyCodec(Role.SERVER), frames.encode(frames.Data(9, Flag.NONE, b"x")))


def test_data_after_fin_is_a_protocol_error() -> None:
    client, server, stream = opened()
    receive(server, client.data(stream, b"", fin=True))

    with pytest.raises(ProtocolError, match="half-closed already"):
        receive(server, frames.encode(frames.Data(stream, Flag.NONE, b"x")))


@given(st.data())
def test_events_are_independent_of_fragmentation(data: st.DataObject) -> None:
    client, server = pair()
    sent = b""
    wanted: dict[int, bytes] = {}
    for _ in range(data.draw(st.integers(1, 4))):
        stream, opening = client.open({"streamtype": data.draw(st.sampled_from(["stdin", "resize"]))})
        wanted[stream] = data.draw(st.binary(max_size=50))
        sent += opening + client.data(stream, wanted[stream], fin=True)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=8)))

    events = receive(server, *(sent[a:b] for a, b in zip([0, *cuts], [*cuts, len(sent)], strict=True)))

    for stream, payload in wanted.items():
        parts = [each.payload for each in events if isinstance(each, DataReceived) and each.stream == stream]
        assert b"".join(parts) == payload
    assert [each.stream for each in events if isinstance(each, StreamFinished)] == list(wanted)


VALID = [
    frames.encode(frames.Data(1, Flag.FIN, b"x")),
    frames.encode(frames.RstStream(1, 5)),
    frames.encode(frames.Ping(1)),
    frames.encode(frames.GoAway(1, 0)),
    SpdyCodec(Role.CLIENT).open({"port": "80"})[1],
]


@given(st.lists(st.one_of(st.sampled_from(VALID), st.binary(max_size=30)), max_size=12))
def test_arbitrary_bytes_raise_only_protocol_errors(pieces: list[bytes]) -> None:
    server = SpdyCodec(Role.SERVER, max_streams=3)

    with suppress(ProtocolError):
        for piece in pieces:
            list(server.receive(piece))
            assert len(server.streams) <= 3
            assert server.buffered <= frames.MAX_CONTROL + 8
