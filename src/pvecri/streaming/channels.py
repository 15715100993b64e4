# SPDX-License-Identifier: Apache-2.0
"""The channel protocols over WebSocket messages (`*.channel.k8s.io`), without I/O.

The first byte of a message is its channel's number, the rest is data. In the base64 variants the message is text:
the number is a digit and the data base64. From version 5 on the message [255, N] half-closes channel N.

Rules:

* Fragments are not reassembled: their data is delivered at once. Only an incomplete base64 quantum and a close
  signal are buffered.
* Unknown channels are skipped, as Kubernetes does. A malformed close signal or base64 is an error.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from pvecri.streaming.errors import ProtocolError

CLOSE = 255


@dataclass(frozen=True)
class ChannelData:
    """Data of a channel."""

    channel: int
    payload: bytes


@dataclass(frozen=True)
class ChannelClosed:
    """The peer has half-closed a channel."""

    channel: int


ChannelEvent = ChannelData | ChannelClosed


@dataclass(frozen=True)
class Framing:
    """A variant of the protocol."""

    base64: bool = False
    close_signal: bool = False


BINARY = Framing()


class ChannelReader:
    """Parses the fragments of one connection's messages. Not usable after a ProtocolError."""

    def __init__(self, framing: Framing, channels: int) -> None:
        """`channels` is the number of channels, which start at 0."""
        self._framing = framing
        self._channels = channels
        self._channel: int | None = None  # of the current message; None before its first byte
        self._buffer = b""

    def receive(self, fragment: bytes, *, finished: bool) -> list[ChannelEvent]:
        """The events of a fragment, `finished` for a message's last one; ProtocolError if it is malformed."""
        if self._channel is None and fragment:
            self._channel = self._number(fragment[0])
            fragment = fragment[1:]
        events: list[ChannelEvent] = []
        if self._channel == CLOSE and self._framing.close_signal:
            events = self._close(fragment, finished=finished)
        elif self._channel is not None:
            payload = self._decode(fragment, finished=finished) if self._framing.base64 else fragment
            if payload and self._channel < self._channels:
                events = [ChannelData(self._channel, payload)]
        if finished:
            self._channel, self._buffer = None, b""
        return events

    def _number(self, byte: int) -> int:
        # Anything but a digit becomes the number of an unknown channel.
        return (byte - ord("0")) % 256 if self._framing.base64 else byte

    def _close(self, fragment: bytes, *, finished: bool) -> list[ChannelEvent]:
        self._buffer += fragment[:2]
        if len(self._buffer) > 1 or (finished and not self._buffer):
            raise ProtocolError("close signal: not followed by exactly one channel")
        if not finished:
            return []
        if self._buffer[0] >= self._channels:
            raise ProtocolError(f"close signal: unknown channel {self._buffer[0]}")
        return [ChannelClosed(self._buffer[0])]

    def _decode(self, fragment: bytes, *, finished: bool) -> bytes:
        text = self._buffer + fragment
        whole = len(text) - len(text) % 4
        if finished and whole != len(text):
            raise ProtocolError("base64: the message is incomplete")
        self._buffer = text[whole:]
        try:
            return base64.b64decode(text[:whole], validate=True)
        except binascii.Error as error:
            raise ProtocolError(f"base64: {error}") from None


def encode(framing: Framing, channel: int, payload: bytes) -> bytes:
    """A message, to be sent as text if the framing is base64, else as binary."""
    if framing.base64:
        return b"%d" % channel + base64.b64encode(payload)
    return bytes((channel,)) + payload
