# SPDX-License-Identifier: Apache-2.0
"""The channel protocols over WebSocket messages (`*.channel.k8s.io`), without I/O.

Every message belongs to one channel: its first byte is the channel's number, the rest is data. In the base64
variants the message is text: the number is a digit and the data base64. From version 5 on the message [255, N]
says that the sender sends no more on channel N.

Rules:

* Messages come in fragments, and data is handed out as it comes: nothing is held but the piece of base64 that
  does not make a whole byte yet, and a close signal.
* Channels that do not exist are skipped, as Kubernetes does; a malformed close signal or base64 is an error.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from pvecri.streaming.errors import ProtocolError

CLOSE = 255


@dataclass(frozen=True)
class ChannelData:
    """Bytes of a channel."""

    channel: int
    payload: bytes


@dataclass(frozen=True)
class ChannelClosed:
    """The peer sends no more on a channel."""

    channel: int


ChannelEvent = ChannelData | ChannelClosed


@dataclass(frozen=True)
class Framing:
    """Which of the variants."""

    base64: bool = False
    close_signal: bool = False


BINARY = Framing()


class ChannelReader:
    """Takes the fragments of one connection's messages. After a ProtocolError it is of no more use."""

    def __init__(self, framing: Framing, channels: int) -> None:
        """`channels` is how many there are, from 0 on."""
        self._framing = framing
        self._channels = channels
        self._channel: int | None = None  # of the message that is being read
        self._held = b""

    def receive(self, fragment: bytes, *, finished: bool) -> list[ChannelEvent]:
        """The events of a fragment; `finished` when it is a message's last. ProtocolError."""
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
            self._channel, self._held = None, b""
        return events

    def _number(self, byte: int) -> int:
        # Whatever is no digit comes out as a channel that does not exist.
        return (byte - ord("0")) % 256 if self._framing.base64 else byte

    def _close(self, fragment: bytes, *, finished: bool) -> list[ChannelEvent]:
        self._held += fragment[:2]
        if len(self._held) > 1 or (finished and not self._held):
            raise ProtocolError("close signal: one channel must follow it")
        if not finished:
            return []
        if self._held[0] >= self._channels:
            raise ProtocolError(f"close signal: there is no channel {self._held[0]}")
        return [ChannelClosed(self._held[0])]

    def _decode(self, fragment: bytes, *, finished: bool) -> bytes:
        text = self._held + fragment
        whole = len(text) - len(text) % 4
        if finished and whole != len(text):
            raise ProtocolError("base64: the message is incomplete")
        self._held = text[whole:]
        try:
            return base64.b64decode(text[:whole], validate=True)
        except binascii.Error as error:
            raise ProtocolError(f"base64: {error}") from None


def encode(framing: Framing, channel: int, payload: bytes) -> bytes:
    """One message; it is to be sent as text when the framing is base64, as binary otherwise."""
    if framing.base64:
        return b"%d" % channel + base64.b64encode(payload)
    return bytes((channel,)) + payload
