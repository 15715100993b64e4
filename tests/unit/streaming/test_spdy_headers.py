# SPDX-License-Identifier: Apache-2.0
"""SPDY header blocks round-trip; malformed ones are refused."""

from __future__ import annotations

import zlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvecri.streaming.errors import ProtocolError
from pvecri.streaming.spdy_headers import DICTIONARY, MAX_BLOCK, HeaderCompressor, HeaderDecompressor

NAMES = st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda name: name == name.lower())
HEADERS = st.dictionaries(NAMES, st.text(st.characters(codec="utf-8")), max_size=8)


def block(plain: bytes) -> bytes:
    """A whole zlib stream's beginning, as the first block of a connection."""
    compressor = zlib.compressobj(zdict=DICTIONARY)
    return compressor.compress(plain) + compressor.flush(zlib.Z_SYNC_FLUSH)


def text(*parts: str) -> bytes:
    return b"".join(len(part).to_bytes(4, "big") + part.encode() for part in parts)


def test_dictionary_is_that_of_spdy_3() -> None:
    # The checksum that every zlib stream primed with it carries (RFC 1950, DICTID).
    assert (len(DICTIONARY), zlib.adler32(DICTIONARY)) == (1423, 0xE3C6A7C2)


@given(st.lists(HEADERS, max_size=5))
def test_header_blocks_round_trip(blocks: list[dict[str, str]]) -> None:
    compressor, decompressor = HeaderCompressor(), HeaderDecompressor()

    assert [decompressor.decompress(compressor.compress(headers)) for headers in blocks] == blocks


@pytest.mark.parametrize(
    ("plain", "problem"),
    [
        (b"\0\0\0", "too short"),
        (b"\0\0\0\1" + text("name"), "too short"),
        (b"\0\0\0\1" + text("name") + b"\0\0\0\5abc", "too short"),
        (b"\0\0\0\1" + text("Name", "value"), "not a header name"),
        (b"\0\0\0\1" + text("", "value"), "not a header name"),
        (b"\0\0\0\2" + text("name", "one", "name", "two"), "duplicate header"),
        (b"\0\0\0\1" + text("name", "value") + b"x", "trailing bytes"),
        (b"\0\0\0\1" + text("name") + b"\0\0\0\1\xff", "not UTF-8"),
        (b"\xff\xff\xff\xff", "too short"),
    ],
)
def test_malformed_header_block_is_refused(plain: bytes, problem: str) -> None:
    with pytest.raises(ProtocolError, match=problem):
        HeaderDecompressor().decompress(block(plain))


def test_decompression_bomb_is_refused() -> None:
    bomb = block(b"\0\0\0\1" + text("name", "x" * 50_000_000))

    with pytest.raises(ProtocolError, match=f"larger than {MAX_BLOCK} bytes"):
        HeaderDecompressor().decompress(bomb)


def test_terminated_zlib_stream_is_refused() -> None:
    compressor = zlib.compressobj(zdict=DICTIONARY)

    with pytest.raises(ProtocolError, match="is terminated"):
        HeaderDecompressor().decompress(compressor.compress(b"\0\0\0\0") + compressor.flush())


@given(st.binary(max_size=200))
def test_arbitrary_compressed_bytes_are_parsed_or_refused(data: bytes) -> None:
    with suppress(ProtocolError):
        HeaderDecompressor().decompress(data)


@given(st.binary(max_size=200))
def test_arbitrary_header_blocks_are_parsed_or_refused(plain: bytes) -> None:
    with suppress(ProtocolError):
        HeaderDecompressor().decompress(block(plain))
