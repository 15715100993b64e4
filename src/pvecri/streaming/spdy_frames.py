# SPDX-License-Identifier: Apache-2.0
"""SPDY/3.1 frames (SPDY protocol draft 3.1, section 2.2), without I/O: bytes in, frames out, and back.

    control frame   1 | version, 15 bits | type, 16 bits    | flags, 8 bits | length, 24 bits | body
    data frame      0 | stream, 31 bits                     | flags, 8 bits | length, 24 bits | payload

Rules:

* At most one control frame, of MAX_CONTROL bytes, is buffered. The payload of a data frame, up to 16 MiB, is
  delivered in pieces as it arrives.
* A body has exactly the length that its type requires.
* Unknown types are skipped (section 2.2.1).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from pvecri.streaming.errors import ProtocolError

VERSION = 3
MAX_CONTROL = 32 << 10
MAX_DATA = (1 << 24) - 1
STREAM_MASK = 0x7FFF_FFFF
_CONTROL_BIT = 0x8000_0000
_HEADER = struct.Struct(">II")


class Type(IntEnum):
    """Control frame types."""

    SYN_STREAM = 1
    SYN_REPLY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    HEADERS = 8
    WINDOW_UPDATE = 9


class Flag(IntFlag):
    """Frame flags; FIN half-closes the stream."""

    NONE = 0
    FIN = 1
    UNIDIRECTIONAL = 2


class ResetStatus(IntEnum):
    """Status codes of RST_STREAM (section 2.6.3)."""

    PROTOCOL_ERROR = 1
    INVALID_STREAM = 2
    REFUSED_STREAM = 3
    CANCEL = 5
    STREAM_ALREADY_CLOSED = 9


class GoAwayStatus(IntEnum):
    """Status codes of GOAWAY (section 2.6.6)."""

    OK = 0
    PROTOCOL_ERROR = 1


@dataclass(frozen=True)
class SynStream:
    """Opens a stream; `block` is its compressed headers."""

    stream: int
    flags: Flag
    block: bytes


@dataclass(frozen=True)
class SynReply:
    """Accepts a stream."""

    stream: int
    flags: Flag
    block: bytes


@dataclass(frozen=True)
class MoreHeaders:
    """A HEADERS frame: further headers of an open stream."""

    stream: int
    flags: Flag
    block: bytes


@dataclass(frozen=True)
class RstStream:
    """Resets a stream; `status` is a ResetStatus or an unknown code."""

    stream: int
    status: int


@dataclass(frozen=True)
class Ping:
    """To be echoed if the peer chose the ID."""

    number: int


@dataclass(frozen=True)
class GoAway:
    """The sender opens and accepts no more streams after `last_stream`."""

    last_stream: int
    status: int


@dataclass(frozen=True)
class Settings:
    """Settings as (id, value); ignored here."""

    values: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class WindowUpdate:
    """The receiver may send `delta` more bytes on the stream."""

    stream: int
    delta: int


@dataclass(frozen=True)
class Data:
    """A piece of a data frame's payload, which may be empty; FIN is set in the last piece only."""

    stream: int
    flags: Flag
    payload: bytes


Frame = SynStream | SynReply | MoreHeaders | RstStream | Ping | GoAway | Settings | WindowUpdate | Data


class FrameReader:
    """Parses the bytes of one direction. Not usable after a ProtocolError."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._stream = 0  # of the current data frame
        self._flags = Flag.NONE
        self._remaining = 0  # bytes of its payload
        self._skip = 0  # bytes of an unknown control frame

    @property
    def buffered(self) -> int:
        """The number of bytes of an incomplete frame."""
        return len(self._buffer)

    @property
    def in_payload(self) -> bool:
        """Whether pieces of the current data frame are still to be received."""
        return self._remaining > 0

    def receive(self, data: bytes) -> Iterator[Frame]:
        """The frames that `data` completes; ProtocolError if one is malformed. Must be iterated to its end."""
        self._buffer += data
        while self._buffer:
            if self._skip:
                self._skip -= len(self._take(self._skip))
            elif self._remaining:
                yield self._piece()
            elif len(self._buffer) < _HEADER.size:
                return
            else:
                first, second = _HEADER.unpack_from(self._buffer)
                flags, length = second >> 24, second & MAX_DATA
                if first & _CONTROL_BIT:
                    frame = self._control(first, flags, length)
                    if frame is None:
                        return
                    yield from frame
                else:
                    yield from self._begin_data(first, flags, length)

    def _take(self, count: int) -> bytes:
        """Remove at most `count` bytes from the front of the buffer."""
        taken = bytes(memoryview(self._buffer)[:count])
        del self._buffer[: len(taken)]
        return taken

    def _begin_data(self, stream: int, flags: int, length: int) -> Iterator[Frame]:
        if stream == 0:
            raise ProtocolError("data frame: stream 0")
        del self._buffer[: _HEADER.size]
        self._stream, self._flags, self._remaining = stream, Flag(flags & Flag.FIN), length
        if length == 0:
            yield Data(stream, self._flags, b"")

    def _piece(self) -> Data:
        payload = self._take(self._remaining)
        self._remaining -= len(payload)
        return Data(self._stream, Flag.NONE if self._remaining else self._flags, payload)

    def _control(self, first: int, flags: int, length: int) -> tuple[Frame, ...] | None:
        """The frame at the front of the buffer; empty for one to skip, None if it is incomplete."""
        version, number = (first & STREAM_MASK) >> 16, first & 0xFFFF
        if version != VERSION:
            raise ProtocolError(f"control frame: version {version} is not {VERSION}")
        parse = _PARSERS.get(number)
        if parse is None:
            del self._buffer[: _HEADER.size]
            self._skip = length
            return ()
        if length > MAX_CONTROL:
            raise ProtocolError(f"{Type(number).name} frame: {length} bytes are more than {MAX_CONTROL}")
        if len(self._buffer) < _HEADER.size + length:
            return None
        body = self._take(_HEADER.size + length)[_HEADER.size :]
        return (parse(flags, body),)


def _unpack(kind: Type, layout: struct.Struct, body: bytes) -> tuple[int, ...]:
    if len(body) != layout.size:
        raise ProtocolError(f"{kind.name} frame: {len(body)} bytes, not {layout.size}")
    return layout.unpack(body)


def _opening(kind: Type, body: bytes, block_at: int) -> tuple[int, bytes]:
    """The stream ID and the header block of a frame that has both."""
    if len(body) < block_at:
        raise ProtocolError(f"{kind.name} frame: {len(body)} bytes are too few")
    return _stream(kind, int.from_bytes(body[:4], "big")), body[block_at:]


def _stream(kind: Type, number: int) -> int:
    if not number & STREAM_MASK:
        raise ProtocolError(f"{kind.name} frame: stream 0")
    return number & STREAM_MASK


_WORD = struct.Struct(">I")
_TWO_WORDS = struct.Struct(">II")


def _syn_stream(flags: int, body: bytes) -> Frame:
    stream, block = _opening(Type.SYN_STREAM, body, 10)
    return SynStream(stream, Flag(flags & 3), block)


def _syn_reply(flags: int, body: bytes) -> Frame:
    stream, block = _opening(Type.SYN_REPLY, body, 4)
    return SynReply(stream, Flag(flags & 1), block)


def _more_headers(flags: int, body: bytes) -> Frame:
    stream, block = _opening(Type.HEADERS, body, 4)
    return MoreHeaders(stream, Flag(flags & 1), block)


def _rst_stream(_: int, body: bytes) -> Frame:
    stream, status = _unpack(Type.RST_STREAM, _TWO_WORDS, body)
    return RstStream(_stream(Type.RST_STREAM, stream), status)


def _settings(_: int, body: bytes) -> Frame:
    if len(body) < 4 or len(body) != 4 + 8 * int.from_bytes(body[:4], "big"):
        raise ProtocolError(f"SETTINGS frame: {len(body)} bytes do not fit its number of entries")
    # The first 8 bits of an entry are its flags, and the ID has 24 (section 2.6.4).
    return Settings(tuple((key & 0xFF_FFFF, value) for key, value in _TWO_WORDS.iter_unpack(body[4:])))


def _ping(_: int, body: bytes) -> Frame:
    return Ping(_unpack(Type.PING, _WORD, body)[0])


def _go_away(_: int, body: bytes) -> Frame:
    last, status = _unpack(Type.GOAWAY, _TWO_WORDS, body)
    return GoAway(last & STREAM_MASK, status)


def _window_update(_: int, body: bytes) -> Frame:
    stream, delta = _unpack(Type.WINDOW_UPDATE, _TWO_WORDS, body)
    if not delta & STREAM_MASK:
        raise ProtocolError("WINDOW_UPDATE frame: by 0 bytes")
    return WindowUpdate(stream & STREAM_MASK, delta & STREAM_MASK)


_PARSERS: dict[int, Callable[[int, bytes], Frame]] = {
    Type.SYN_STREAM: _syn_stream,
    Type.SYN_REPLY: _syn_reply,
    Type.RST_STREAM: _rst_stream,
    Type.SETTINGS: _settings,
    Type.PING: _ping,
    Type.GOAWAY: _go_away,
    Type.HEADERS: _more_headers,
    Type.WINDOW_UPDATE: _window_update,
}


def encode(frame: Frame) -> bytes:
    """The frame's bytes. A data frame's payload must not exceed MAX_DATA bytes."""
    if isinstance(frame, Data):
        return _HEADER.pack(frame.stream, frame.flags << 24 | len(frame.payload)) + frame.payload
    kind, flags, body = _content(frame)
    return _HEADER.pack(_CONTROL_BIT | VERSION << 16 | kind, flags << 24 | len(body)) + body


def _content(frame: Frame) -> tuple[Type, Flag, bytes]:
    flags = Flag.NONE
    match frame:
        # No associated stream; priority and slot 0.
        case SynStream(stream, flags, block):
            kind, body = Type.SYN_STREAM, struct.pack(">IIH", stream, 0, 0) + block
        case SynReply(stream, flags, block):
            kind, body = Type.SYN_REPLY, _WORD.pack(stream) + block
        case MoreHeaders(stream, flags, block):
            kind, body = Type.HEADERS, _WORD.pack(stream) + block
        case RstStream(stream, status):
            kind, body = Type.RST_STREAM, _TWO_WORDS.pack(stream, status)
        case Settings(values):
            kind, body = (
                Type.SETTINGS,
                _WORD.pack(len(values)) + b"".join(_TWO_WORDS.pack(*each) for each in values),
            )
        case Ping(number):
            kind, body = Type.PING, _WORD.pack(number)
        case GoAway(last, status):
            kind, body = Type.GOAWAY, _TWO_WORDS.pack(last, status)
        case WindowUpdate(stream, delta):
            kind, body = Type.WINDOW_UPDATE, _TWO_WORDS.pack(stream, delta)
        case _:
            raise TypeError(f"{frame!r} is no control frame")
    return kind, flags, body
