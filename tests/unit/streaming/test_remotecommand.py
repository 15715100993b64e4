# SPDX-License-Identifier: Apache-2.0
"""Negotiation, terminal sizes and status objects of the remote command protocol."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvecri.streaming import remotecommand
from pvecri.streaming.errors import ProtocolError
from pvecri.streaming.remotecommand import (
    SIZE_LIMIT,
    SPDY_VERSIONS,
    WEBSOCKET_VERSIONS,
    SizeReader,
    TerminalSize,
    Version,
    negotiate,
)

V4 = SPDY_VERSIONS[0]
V1 = SPDY_VERSIONS[-1]


@pytest.mark.parametrize(
    ("offered", "versions", "chosen"),
    [
        (["v5.channel.k8s.io", "v4.channel.k8s.io", "channel.k8s.io"], SPDY_VERSIONS, "v4.channel.k8s.io"),
        (["v2.channel.k8s.io", "v4.channel.k8s.io"], SPDY_VERSIONS, "v2.channel.k8s.io"),
        (["v5.channel.k8s.io"], WEBSOCKET_VERSIONS, "v5.channel.k8s.io"),
        (["base64.channel.k8s.io"], WEBSOCKET_VERSIONS, "base64.channel.k8s.io"),
        ([""], WEBSOCKET_VERSIONS, ""),
    ],
)
def test_negotiation_prefers_the_clients_order(
    offered: list[str], versions: tuple[Version, ...], chosen: str
) -> None:
    version = negotiate(offered, versions)

    assert version is not None
    assert version.name == chosen


def test_negotiation_without_a_common_version() -> None:
    assert negotiate(["v9.channel.k8s.io"], SPDY_VERSIONS) is None


def test_exit_code_is_a_cause_in_the_status() -> None:
    status = json.loads(remotecommand.exit_status(V4, 7))

    assert status["status"] == "Failure"
    assert status["reason"] == "NonZeroExitCode"
    assert status["details"]["causes"] == [{"reason": "ExitCode", "message": "7"}]


def test_success_is_json_and_empty_before_v4() -> None:
    assert json.loads(remotecommand.exit_status(V4, 0))["status"] == "Success"
    assert remotecommand.exit_status(V1, 0) == b""


def test_failure_status_has_the_message() -> None:
    assert json.loads(remotecommand.failure_status(V4, "no such thing"))["message"] == "no such thing"
    assert remotecommand.failure_status(V1, "no such thing") == b"no such thing"


@given(st.lists(st.tuples(st.integers(0, 65535), st.integers(0, 65535)), max_size=4), st.integers(1, 9))
def test_sizes_are_parsed_in_any_fragmentation(sizes: list[tuple[int, int]], step: int) -> None:
    text = "\n".join(json.dumps({"Width": width, "Height": height}) for width, height in sizes).encode()
    reader = SizeReader()

    read = [size for at in range(0, len(text), step) for size in reader.receive(text[at : at + step])]

    assert read == [TerminalSize(*size) for size in sizes]


@pytest.mark.parametrize(
    "data",
    [
        b"80x24",
        b"[1]",
        b'{"Width": 80}',
        b'{"Width": -1, "Height": 2}',
        b'{"Width": "80", "Height": 2}',
        b"{" * 5000,
    ],
)
def test_malformed_size_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="resize"):
        SizeReader().receive(data)


@given(st.lists(st.binary(max_size=100), max_size=30))
def test_arbitrary_bytes_are_parsed_or_refused_in_bounded_memory(pieces: list[bytes]) -> None:
    reader = SizeReader()

    with suppress(ProtocolError):
        for piece in pieces:
            reader.receive(b'{"a": "' + piece)
            assert len(reader._text) <= SIZE_LIMIT
