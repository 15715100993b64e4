# SPDX-License-Identifier: Apache-2.0
"""SPDY/3.1 as Kubernetes uses it: a connection as a state machine, without I/O. Bytes in, events out.

Rules:

* Either side opens streams, the client odd ones, the server even ones, each with a larger number than the last.
* A stream ends when both sides have sent FIN, or at once when either resets it:

      state           send FIN        receive FIN      reset by either
      OPEN            LOCAL_CLOSED    REMOTE_CLOSED    (forgotten)
      LOCAL_CLOSED    -               (forgotten)      (forgotten)
      REMOTE_CLOSED   (forgotten)     error            (forgotten)

* What still comes for a stream that is forgotten is dropped: the peer may not know yet. What comes for one that
  never was is an error.
* At most `max_streams` are open; one too many is refused, and the others go on.
* Windows: the library that client-go, kubelet and crictl use (moby/spdystream) never sends WINDOW_UPDATE and does
  not wait for it, so a sender that kept to the 64 KiB of section 2.6.8 would hang. Neither side keeps windows;
  the transport's own flow control is what slows a sender down.
* Whoever gets a PING with a number of the peer's choosing sends it back.
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
    """Which end of the connection; the value is the number of its first stream."""

    CLIENT = 1
    SERVER = 2


@dataclass(frozen=True)
class StreamOpened:
    """The peer opened a stream: answer with `reply` or `reset`."""

    stream: int
    headers: Headers


@dataclass(frozen=True)
class StreamReplied:
    """The peer accepted a stream of ours."""

    stream: int


@dataclass(frozen=True)
class StreamRefused:
    """The peer opened one stream too many: answer with `reset`."""

    stream: int
    status: ResetStatus


@dataclass(frozen=True)
class DataReceived:
    """Bytes of a stream."""

    stream: int
    payload: bytes


@dataclass(frozen=True)
class StreamFinished:
    """The peer sends no more on a stream."""

    stream: int


@dataclass(frozen=True)
class StreamReset:
    """The peer ended a stream in both directions."""

    stream: int


@dataclass(frozen=True)
class PingReceived:
    """Answer with `ping` and the same number."""

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
    """One end of one connection. The bytes that its methods return are to be sent in the order of the calls."""

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
        """The streams that are open, at least in one direction."""
        return list(self._streams)

    @property
    def held(self) -> int:
        """How many received bytes are held until more come."""
        return self._reader.held

    # -- receiving --------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> Iterator[Event]:
        """The events of bytes from the peer; ProtocolError ends the connection. Must be iterated to its end."""
        for frame in self._reader.receive(data):
            yield from self._events(frame)

    def _events(self, frame: frames.Frame) -> Iterator[Event]:
        match frame:
            case frames.Data(stream, flags, payload):
                yield from self._data_received(stream, flags, payload)
            case frames.SynStream(stream, flags, block):
                yield from self._stream_opened(stream, flags, self._decompressor.decompress(block))
            case frames.SynReply(stream, flags, block) | frames.MoreHeaders(stream, flags, block):
                self._decompressor.decompress(block)  # read for its effect on later blocks; it says nothing to us
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
            raise ProtocolError(f"data frame: stream {stream} was finished before")
        if payload:
            yield DataReceived(stream, payload)
        yield from self._fin_received(stream, flags)

    def _fin_received(self, stream: int, flags: Flag) -> Iterator[Event]:
        # The receiver of an event may have reset the stream before it asks for the next one.
        if Flag.FIN in flags and stream in self._streams:
            if not self._fin(stream, _Fin.RECEIVED):
                raise ProtocolError(f"stream {stream} was finished before")
            yield StreamFinished(stream)

    def _fin(self, stream: int, fin: _Fin) -> bool:
        """Move on; False where the state does not allow it."""
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
        """Open a stream: its number, and what to send."""
        stream = self._next_own
        self._next_own += 2
        self._streams[stream] = _State.OPEN
        return stream, frames.encode(frames.SynStream(stream, Flag.NONE, self._compressor.compress(headers)))

    def reply(self, stream: int) -> bytes:
        """Accept a stream of the peer's: before this the peer takes no data of it."""
        return frames.encode(frames.SynReply(stream, Flag.NONE, self._compressor.compress({})))

    def data(self, stream: int, payload: bytes, *, fin: bool = False) -> bytes:
        """Send bytes, and with `fin` no more; nothing to send when the stream does not take data from us."""
        if self._streams.get(stream) not in {_State.OPEN, _State.REMOTE_CLOSED}:
            return b""
        if fin:
            self._fin(stream, _Fin.SENT)
        return frames.encode(frames.Data(stream, Flag.FIN if fin else Flag.NONE, payload))

    def reset(self, stream: int, status: ResetStatus) -> bytes:
        """End a stream in both directions."""
        self._streams.pop(stream, None)
        return frames.encode(frames.RstStream(stream, status))

    def ping(self, number: int) -> bytes:
        """Ask the peer, or answer it."""
        return frames.encode(frames.Ping(number))

    def go_away(self, status: GoAwayStatus = GoAwayStatus.OK) -> bytes:
        """Say that the connection ends; streams that the peer opens after this are ignored."""
        self._going_away = True
        return frames.encode(frames.GoAway(self._last_peer, status))
