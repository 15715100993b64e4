# SPDX-License-Identifier: Apache-2.0
"""The wire format of NRI, without I/O: bytes in, messages out, and back.

    trunk    connection, 32 bits | length, 32 bits | payload                           (NRI's multiplexer)
    message  length, 32 bits | stream, 32 bits | type, 8 bits | flags, 8 bits | data   (ttrpc protocol 1.2)

Numbers are big-endian. One socket, the trunk, multiplexes two connections, each a stream of ttrpc messages.

Rules:

* A message's data has at most MAX_DATA bytes. A larger one is skipped without buffering it.
* Trunk frames split a connection's bytes anywhere. Frames of unknown connections are skipped.
* A message is written in one trunk frame if it has at most FIRST bytes, else in two, split at FIRST: NRI's Go
  library fails if a frame is larger than the buffer that it reads into, at first 4096 bytes (decision 0040).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from pvecri.nri.errors import ProtocolError

MAX_DATA = 4 << 20  # ttrpc's own limit, messageLengthMax
FIRST = 4096

_TRUNK = struct.Struct(">II")
_MESSAGE = struct.Struct(">IIBB")
_MAX_FRAME = MAX_DATA + _MESSAGE.size


class Connection(IntEnum):
    """The multiplexed connections, by the side that serves calls on it."""

    PLUGIN = 1
    RUNTIME = 2


class MessageType(IntEnum):
    """Message types of unary calls; NRI has no streaming ones."""

    REQUEST = 1
    RESPONSE = 2


@dataclass(frozen=True)
class Message:
    """A ttrpc message; `kind` is a MessageType or an unknown one, `data` None if it was too large."""

    connection: Connection
    stream: int
    kind: int
    data: bytes | None


def encode(message: Message) -> bytes:
    """The message in trunk frames; ValueError if its data is larger than MAX_DATA."""
    data = message.data or b""
    if len(data) > MAX_DATA:
        raise ValueError(f"a message of {len(data)} bytes is larger than {MAX_DATA}")
    whole = _MESSAGE.pack(len(data), message.stream, message.kind, 0) + data
    parts = [part for part in (whole[:FIRST], whole[FIRST:]) if part]
    return b"".join(_TRUNK.pack(message.connection, len(part)) + part for part in parts)


class Reader:
    """Parses the bytes of a trunk. Not usable after a ProtocolError."""

    def __init__(self) -> None:
        self._header = bytearray()
        self._connection = 0
        self._left = 0
        """Bytes of the current frame that are still to be received."""
        self._streams = {connection: _MessageReader(connection) for connection in Connection}

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that `data` completes; ProtocolError for an oversized frame."""
        view = memoryview(data)
        while view:
            if not self._left:
                view = self._take_header(view)
                continue
            piece, view = view[: self._left], view[self._left :]
            self._left -= len(piece)
            if self._connection in self._streams:
                yield from self._streams[Connection(self._connection)].feed(piece)

    def _take_header(self, view: memoryview) -> memoryview:
        missing = _TRUNK.size - len(self._header)
        self._header += view[:missing]
        if len(self._header) == _TRUNK.size:
            self._connection, self._left = _TRUNK.unpack(self._header)
            self._header.clear()
            if self._left > _MAX_FRAME:
                raise ProtocolError(f"a trunk frame of {self._left} bytes is larger than {_MAX_FRAME}")
        return view[missing:]


class _MessageReader:
    """Reassembles the messages of one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._buffer = bytearray()
        self._skip = 0
        """Bytes of an oversized message that are still to be skipped."""

    def feed(self, piece: memoryview) -> Iterator[Message]:
        skipped = min(self._skip, len(piece))
        self._skip -= skipped
        self._buffer += piece[skipped:]
        while (message := self._next()) is not None:
            yield message

    def _next(self) -> Message | None:
        if len(self._buffer) < _MESSAGE.size:
            return None
        length, stream, kind, _flags = _MESSAGE.unpack_from(self._buffer)
        end = _MESSAGE.size + length
        if length > MAX_DATA:
            self._skip = max(0, end - len(self._buffer))
            del self._buffer[:end]
            return Message(self._connection, stream, kind, None)
        if len(self._buffer) < end:
            return None
        data = bytes(memoryview(self._buffer)[_MESSAGE.size : end])
        del self._buffer[:end]
        return Message(self._connection, stream, kind, data)
