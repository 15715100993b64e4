# SPDX-License-Identifier: Apache-2.0
"""SPDY/3.1 as Kubernetes uses it: a connection as a state machine, without I/O. Bytes in, events out.

Rules:

* Stream IDs ascend; the client's are odd, the server's even.
* A stream is closed once both sides have sent FIN, or at once if either resets it:

      state           send FIN        receive FIN      reset by either
      OPEN            LOCAL_CLOSED    REMOTE_CLOSED    (closed)
      LOCAL_CLOSED    -               (closed)         (closed)
      REMOTE_CLOSED   (closed)        error            (closed)

* Frames of a closed stream are dropped: the peer may have sent them before it knew. Those of a stream that was
  never opened are an error.
* At most `max_streams` are open; further ones are refused.
* No flow-control windows: moby/spdystream, the library of client-go, kubelet and crictl, never sends WINDOW_UPDATE
  and does not wait for it, so a sender that kept to the 64 KiB of section 2.6.8 would hang. TCP's own flow control
  is what slows a sender down (decision 0031).
* A PING with an ID of the peer's parity is echoed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from pvecri.streaming import spdy_frames as frames
from pvecri.streaming.errors import ProtocolError
from pvecri.streaming.spdy_frames import Flag, GoAwayStatus, ResetStatus
from pvecri.streaming.spdy_headers import HeaderCompressor, HeaderDecompressor, Headers

MAX_STREAMS = 1024


class Role(Enum):
    """The side of the connection; the value is its first stream ID."""

    CLIENT = 1
    SERVER = 2


@dataclass(frozen=True)
class StreamOpened:
    """The peer opened a stream: send `reply` or `reset`."""

    stream: int
    headers: Headers


@dataclass(frozen=True)
class StreamReplied:
    """The peer accepted a stream of ours."""

    stream: int


@dataclass(frozen=True)
class StreamRefused:
    """The peer exceeded `max_streams`: send `reset`."""

    stream: int
    status: ResetStatus


@dataclass(frozen=True)
class DataReceived:
    """Data of a stream."""

    stream: int
    payload: bytes


@dataclass(frozen=True)
class StreamFinished:
    """The peer has half-closed a stream (FIN)."""

    stream: int


@dataclass(frozen=True)
class StreamReset:
    """The peer has reset a stream."""

    stream: int


@dataclass(frozen=True)
class PingReceived:
    """Send `ping` with the same ID."""

    number: int


@dataclass(frozen=True)
class GoAwayReceived:
    """The peer is about to close the connection."""


Event = (
    StreamOpened
    | StreamReplied
    | StreamRefused
    | DataReceived
    | StreamFinished
    | StreamReset
    | PingReceived
    | GoAwayReceived
)


class _State(Enum):
    OPEN = "open"
    LOCAL_CLOSED = "local closed"
    REMOTE_CLOSED = "remote closed"


class _Fin(Enum):
    SENT = "sent"
    RECEIVED = "received"


_AFTER_FIN: Mapping[tuple[_State, _Fin], _State | None] = {
    (_State.OPEN, _Fin.SENT): _State.LOCAL_CLOSED,
    (_State.OPEN, _Fin.RECEIVED): _State.REMOTE_CLOSED,
    (_State.LOCAL_CLOSED, _Fin.RECEIVED): None,
    (_State.REMOTE_CLOSED, _Fin.SENT): None,
}


class SpdyCodec:
    """One side of a connection. The bytes that its methods return must be sent in the order of the calls."""

    def __init__(self, role: Role, max_streams: int = MAX_STREAMS) -> None:
        self._role = role
        self._max_streams = max_streams
        self._reader = frames.FrameReader()
        self._compressor = HeaderCompressor()
        self._decompressor = HeaderDecompressor()
        self._streams: dict[int, _State] = {}
        self._next_own = role.value
        self._last_peer = 0
        self._going_away = False

    @property
    def streams(self) -> list[int]:
        """The streams that are open in at least one direction."""
        return list(self._streams)

    @property
    def buffered(self) -> int:
        """The number of received bytes of an incomplete frame."""
        return self._reader.buffered

    # -- receiving --------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> Iterator[Event]:
        """The events of received bytes; ProtocolError, which ends the connection. Must be iterated to its end."""
        for frame in self._reader.receive(data):
            yield from self._events(frame)

    def _events(self, frame: frames.Frame) -> Iterator[Event]:
        match frame:
            case frames.Data(stream, flags, payload):
                yield from self._data_received(stream, flags, payload)
            case frames.SynStream(stream, flags, block):
                yield from self._stream_opened(stream, flags, self._decompressor.decompress(block))
            case frames.SynReply(stream, flags, block) | frames.MoreHeaders(stream, flags, block):
                self._decompressor.decompress(block)  # for its effect on the zlib stream; its headers are unused
                if stream in self._streams:
                    if isinstance(frame, frames.SynReply):
                        yield StreamReplied(stream)
                    yield from self._fin_received(stream, flags)
            case frames.RstStream(stream, _):
                if self._streams.pop(stream, None) is not None:
                    yield StreamReset(stream)
            case frames.Ping(number):
                if number % 2 != self._role.value % 2:
                    yield PingReceived(number)
            case frames.GoAway():
                yield GoAwayReceived()
            case frames.Settings() | frames.WindowUpdate():
                pass

    def _stream_opened(self, stream: int, flags: Flag, headers: Headers) -> Iterator[Event]:
        if stream % 2 == self._role.value % 2 or stream <= self._last_peer:
            raise ProtocolError(f"SYN_STREAM frame: stream {stream} cannot be opened after {self._last_peer}")
        # The header block is decompressed by now also for a stream that is refused: all blocks are one zlib
        # stream.
        self._last_peer = stream
        if self._going_away:
            return
        if len(self._streams) >= self._max_streams:
            yield StreamRefused(stream, ResetStatus.REFUSED_STREAM)
            return
        self._streams[stream] = _State.OPEN
        yield StreamOpened(stream, headers)
        if Flag.UNIDIRECTIONAL in flags:
            self._fin(stream, _Fin.SENT)
        yield from self._fin_received(stream, flags)

    def _data_received(self, stream: int, flags: Flag, payload: bytes) -> Iterator[Event]:
        if stream not in self._streams:
            if stream > self._last_peer and stream >= self._next_own:
                raise ProtocolError(f"data frame: stream {stream} was never opened")
            return
        if self._streams[stream] is _State.REMOTE_CLOSED:
            raise ProtocolError(f"data frame: stream {stream} is half-closed already")
        if payload:
            yield DataReceived(stream, payload)
        yield from self._fin_received(stream, flags)

    def _fin_received(self, stream: int, flags: Flag) -> Iterator[Event]:
        # The consumer of the previous event may have reset the stream.
        if Flag.FIN in flags and stream in self._streams:
            if not self._fin(stream, _Fin.RECEIVED):
                raise ProtocolError(f"stream {stream} is half-closed already")
            yield StreamFinished(stream)

    def _fin(self, stream: int, fin: _Fin) -> bool:
        """Change the stream's state; False if that is not allowed."""
        move = (self._streams[stream], fin)
        if move not in _AFTER_FIN:
            return False
        state = _AFTER_FIN[move]
        if state is None:
            del self._streams[stream]
        else:
            self._streams[stream] = state
        return True

    # -- sending ----------------------------------------------------------------------------------------------

    def open(self, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """Open a stream; returns its ID and the bytes to send."""
        stream = self._next_own
        self._next_own += 2
        self._streams[stream] = _State.OPEN
        return stream, frames.encode(frames.SynStream(stream, Flag.NONE, self._compressor.compress(headers)))

    def reply(self, stream: int) -> bytes:
        """Accept a stream of the peer, which must be sent before data."""
        return frames.encode(frames.SynReply(stream, Flag.NONE, self._compressor.compress({})))

    def data(self, stream: int, payload: bytes, *, fin: bool = False) -> bytes:
        """A data frame, `fin` to half-close the stream; empty if this side has closed it already."""
        if self._streams.get(stream) not in {_State.OPEN, _State.REMOTE_CLOSED}:
            return b""
        if fin:
            self._fin(stream, _Fin.SENT)
        return frames.encode(frames.Data(stream, Flag.FIN if fin else Flag.NONE, payload))

    def reset(self, stream: int, status: ResetStatus) -> bytes:
        """Reset a stream."""
        self._streams.pop(stream, None)
        return frames.encode(frames.RstStream(stream, status))

    def ping(self, number: int) -> bytes:
        """A PING, or the response to one."""
        return frames.encode(frames.Ping(number))

    def go_away(self, status: GoAwayStatus = GoAwayStatus.OK) -> bytes:
        """A GOAWAY; streams that the peer opens after it are ignored."""
        self._going_away = True
        return frames.encode(frames.GoAway(self._last_peer, status))
