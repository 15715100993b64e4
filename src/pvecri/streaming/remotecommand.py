# SPDX-License-Identifier: Apache-2.0
"""The remote command protocol of exec and attach, above SPDY streams or WebSocket channels, without I/O.

Source: k8s.io/apimachinery/pkg/util/remotecommand names the versions. What they add to each other:

    channel.k8s.io       the streams error, stdin, stdout and stderr; the outcome is text on the error stream,
                         and nothing when all went well
    v2.channel.k8s.io    stdin can be closed by either side (SPDY only)
    v3.channel.k8s.io    the stream resize, for a tty (SPDY only; WebSocket has had its channel from the start)
    v4.channel.k8s.io    the outcome is a metav1.Status in JSON, with the exit code
    v5.channel.k8s.io    stdin can be closed by the client (WebSocket only)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from pvecri.streaming.channels import BINARY, Framing
from pvecri.streaming.errors import ProtocolError

SIZE_LIMIT = 1024
"""Bytes that a message of the resize stream may have."""


class StreamType(Enum):
    """The streams of a command, by the value of SPDY's `streamtype` header."""

    STDIN = "stdin"
    STDOUT = "stdout"
    STDERR = "stderr"
    ERROR = "error"
    RESIZE = "resize"


CHANNELS = (StreamType.STDIN, StreamType.STDOUT, StreamType.STDERR, StreamType.ERROR, StreamType.RESIZE)
"""The streams in the order of their WebSocket channels."""


@dataclass(frozen=True)
class Version:
    """What a version of the protocol has."""

    name: str
    framing: Framing = BINARY
    resize: bool = True
    json_status: bool = True


SPDY_VERSIONS = (
    Version("v4.channel.k8s.io"),
    Version("v3.channel.k8s.io", json_status=False),
    Version("v2.channel.k8s.io", resize=False, json_status=False),
    Version("channel.k8s.io", resize=False, json_status=False),
)
WEBSOCKET_VERSIONS = (
    Version("v5.channel.k8s.io", Framing(close_signal=True)),
    Version("v4.channel.k8s.io"),
    Version("v4.base64.channel.k8s.io", Framing(base64=True)),
    Version("channel.k8s.io", json_status=False),
    Version("base64.channel.k8s.io", Framing(base64=True), json_status=False),
    Version("", json_status=False),
)
"""The last one is for clients that name no subprotocol."""


def negotiate(offered: Sequence[str], versions: Sequence[Version]) -> Version | None:
    """The first version of the client's list that we have; None when we have none of them."""
    known = {version.name: version for version in versions}
    return next((known[name] for name in offered if name in known), None)


@dataclass(frozen=True)
class TerminalSize:
    """In characters."""

    columns: int
    rows: int


class SizeReader:
    """Reads the resize stream: JSON objects `{"Width": 80, "Height": 24}`, one after the other."""

    def __init__(self) -> None:
        self._text = ""
        self._decoder = json.JSONDecoder()

    def receive(self, data: bytes) -> list[TerminalSize]:
        """The sizes that `data` completes; ProtocolError."""
        self._text = (self._text + data.decode("ascii", "replace")).lstrip()
        sizes = []
        while self._text:
            try:
                value, end = self._decoder.raw_decode(self._text)
            except (ValueError, RecursionError) as error:
                if len(self._text) > SIZE_LIMIT or not self._text.startswith("{"):
                    raise ProtocolError(f"resize: {error}") from None
                break
            sizes.append(_size(value))
            self._text = self._text[end:].lstrip()
        return sizes


def _size(value: object) -> TerminalSize:
    if isinstance(value, dict):
        columns, rows = value.get("Width"), value.get("Height")
        if isinstance(columns, int) and isinstance(rows, int) and 0 <= columns <= 0xFFFF and 0 <= rows <= 0xFFFF:
            return TerminalSize(columns, rows)
    raise ProtocolError(f"resize: {value!r} is not a terminal's size")


def exit_status(version: Version, code: int) -> bytes:
    """What the error stream says of a command that ended with an exit code."""
    if not version.json_status:
        return b"" if code == 0 else f"command terminated with non-zero exit code: {code}".encode()
    if code == 0:
        return _json({"metadata": {}, "status": "Success"})
    return _json(
        {
            "metadata": {},
            "status": "Failure",
            "message": f"command terminated with non-zero exit code: {code}",
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
        }
    )


def failure_status(version: Version, message: str) -> bytes:
    """What the error stream says when there is no exit code, because something failed."""
    if not version.json_status:
        return message.encode()
    return _json(
        {
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": "InternalError",
            "details": {"causes": [{"message": message}]},
            "code": 500,
        }
    )


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
