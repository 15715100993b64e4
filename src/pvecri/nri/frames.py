# SPDX-License-Identifier: Apache-2.0
"""What travels between the runtime and a plugin, without I/O: bytes in, messages out, and back.

    trunk    connection, 32 bits | length, 32 bits | payload                           (NRI's multiplexer)
    message  length, 32 bits | stream, 32 bits | type, 8 bits | flags, 8 bits | data   (ttrpc protocol 1.2)

Numbers are big-endian. One socket, the trunk, carries two logical connections, each a stream of ttrpc messages.

Rules:

* A message's data has at most MAX_DATA bytes. The data of a larger one is passed over and not held.
* Trunk frames cut a connection's bytes anywhere; frames of connections that we do not know are passed over.
* We write a message as NRI's own implementation does, in one trunk frame when it fits FIRST bytes and else in two:
  what is ahead of FIRST, and the rest. Readers of that implementation rely on it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from pvecri.nri.errors import ProtocolError

MAX_DATA = 4 << 20
FIRST = 4096

_TRUNK = struct.Struct(">II")
_MESSAGE = struct.Struct(">IIBB")
_MAX_FRAME = MAX_DATA + _MESSAGE.size


class Connection(IntEnum):
    """The logical connections, by who answers there."""

    PLUGIN = 1
    RUNTIME = 2


class MessageType(IntEnum):
    """Message types of unary calls; NRI has no streaming ones."""

    REQUEST = 1
    RESPONSE = 2


@dataclass(frozen=True)
class Message:
    """One ttrpc message; `kind` is a MessageType or one that we do not know. No `data`: it was too large."""

    connection: Connection
    stream: int
    kind: int
    data: bytes | None


def encode(message: Message) -> bytes:
    """The bytes for the trunk; ValueError when the data is larger than MAX_DATA."""
    data = message.data or b""
    if len(data) > MAX_DATA:
        raise ValueError(f"a message of {len(data)} bytes is larger than {MAX_DATA}")
    whole = _MESSAGE.pack(len(data), message.stream, message.kind, 0) + data
    parts = [part for part in (whole[:FIRST], whole[FIRST:]) if part]
    return b"".join(_TRUNK.pack(message.connection, len(part)) + part for part in parts)


class Reader:
    """Takes the bytes of a trunk as they come. After a ProtocolError it is of no more use."""

    def __init__(self) -> None:
        self._header = bytearray()
        self._connection = 0
        self._left = 0
        """Bytes of the current frame that have not come yet."""
        self._streams = {connection: _MessageReader(connection) for connection in Connection}

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that are complete with this piece; ProtocolError for a frame that cannot be."""
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
    """The messages of one logical connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._buffer = bytearray()
        self._skip = 0
        """Bytes of a message that is too large which have not come yet."""

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
