# SPDX-License-Identifier: Apache-2.0
"""SPDY/3.1 header blocks (SPDY protocol draft 3.1, section 2.6.10), without I/O.

A block is the number of headers, then the length and text of each name and value; numbers are 32 bits. All blocks
of one direction are one zlib stream with the protocol's dictionary, flushed after each block. So a malformed block
ends the connection: later ones cannot be decompressed. A block has at most MAX_BLOCK bytes decompressed.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

from pvecri.streaming.errors import ProtocolError

MAX_BLOCK = 64 << 10

WINDOW_BITS = 11
"""The compressor's window: the dictionary fits, and it takes 20 KiB instead of the 256 KiB of zlib's default."""

Headers = dict[str, str]
"""By name in lower case. Several values of one name are one string, separated by NUL."""

_WORDS = (
    "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age "
    "allow authorization cache-control connection content-base content-encoding content-language content-length "
    "content-location content-md5 content-range content-type date etag expect expires from host if-match "
    "if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma "
    "proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade "
    "user-agent vary via warning www-authenticate method get status"
).split() + ["200 OK", "version", "HTTP/1.1", "url", "public", "set-cookie", "keep-alive", "origin"]
_TAIL = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized"
    "403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable"
    "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT"
    "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,"
    "text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)
DICTIONARY = b"".join(len(word).to_bytes(4, "big") + word.encode() for word in _WORDS) + _TAIL.encode()
"""The dictionary of section 2.6.10.1: words with their lengths, then text without."""


class HeaderCompressor:
    """The sending direction of one connection."""

    def __init__(self) -> None:
        self._zlib = zlib.compressobj(wbits=WINDOW_BITS, memLevel=1, zdict=DICTIONARY)

    def compress(self, headers: Mapping[str, str]) -> bytes:
        """The block of `headers`. Blocks must be sent in the order of the calls."""
        parts = [len(headers).to_bytes(4, "big")]
        for text in (text for pair in headers.items() for text in pair):
            data = text.encode()
            parts += [len(data).to_bytes(4, "big"), data]
        return self._zlib.compress(b"".join(parts)) + self._zlib.flush(zlib.Z_SYNC_FLUSH)


class HeaderDecompressor:
    """The receiving direction of one connection. Not usable after a ProtocolError."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(zdict=DICTIONARY)

    def decompress(self, block: bytes) -> Headers:
        """The headers of the next block; ProtocolError if it is malformed or larger than MAX_BLOCK."""
        try:
            plain = self._zlib.decompress(block, MAX_BLOCK + 1)
        except zlib.error as error:
            raise ProtocolError(f"header block: {error}") from None
        if len(plain) > MAX_BLOCK or self._zlib.unconsumed_tail:
            raise ProtocolError(f"header block: larger than {MAX_BLOCK} bytes")
        if self._zlib.eof:
            raise ProtocolError("header block: the zlib stream is terminated")
        return _parse(plain)


def _parse(block: bytes) -> Headers:
    rest = memoryview(block)
    count, rest = _number(rest)
    headers: Headers = {}
    for _ in range(count):
        name, rest = _text(rest)
        value, rest = _text(rest)
        if not name or name != name.lower():
            raise ProtocolError(f"header block: {name!r} is not a header name in lower case")
        if name in headers:
            raise ProtocolError(f"header block: duplicate header {name!r}")
        headers[name] = value
    if rest:
        raise ProtocolError("header block: trailing bytes")
    return headers


def _number(data: memoryview) -> tuple[int, memoryview]:
    if len(data) < 4:
        raise ProtocolError("header block: too short")
    return int.from_bytes(data[:4], "big"), data[4:]


def _text(data: memoryview) -> tuple[str, memoryview]:
    length, data = _number(data)
    if len(data) < length:
        raise ProtocolError("header block: too short")
    try:
        return bytes(data[:length]).decode(), data[length:]
    except UnicodeDecodeError:
        raise ProtocolError("header block: not UTF-8") from None
