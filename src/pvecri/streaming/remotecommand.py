# SPDX-License-Identifier: Apache-2.0
"""The remote command protocol of exec and attach, above SPDY streams or WebSocket channels, without I/O.

Source: k8s.io/apimachinery/pkg/util/remotecommand names the versions. What each adds:

    channel.k8s.io       the streams error, stdin, stdout and stderr; an error is text on the error stream,
                         success is an empty error stream
    v2.channel.k8s.io    stdin can be half-closed (SPDY only)
    v3.channel.k8s.io    the stream resize, for a tty (SPDY only; WebSocket has had its channel from the start)
    v4.channel.k8s.io    the error stream has a metav1.Status in JSON, with the exit code
    v5.channel.k8s.io    stdin can be half-closed (WebSocket only)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from pvecri.streaming.channels import BINARY, Framing
from pvecri.streaming.errors import ProtocolError

SIZE_LIMIT = 1024
"""The maximum bytes of a JSON object on the resize stream."""


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
    """A version of the protocol; `resize` is whether it has the stream, `json_status` a metav1.Status."""

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
"""The last one is for clients that request no subprotocol."""


def negotiate(offered: Sequence[str], versions: Sequence[Version]) -> Version | None:
    """The first version of the client's list that is supported; None if there is none."""
    known = {version.name: version for version in versions}
    return next((known[name] for name in offered if name in known), None)


@dataclass(frozen=True)
class TerminalSize:
    """A terminal's size in characters."""

    columns: int
    rows: int


class SizeReader:
    """Parses the resize stream: consecutive JSON objects `{"Width": 80, "Height": 24}`."""

    def __init__(self) -> None:
        self._text = ""
        self._decoder = json.JSONDecoder()

    def receive(self, data: bytes) -> list[TerminalSize]:
        """The sizes that `data` completes; ProtocolError if it is malformed."""
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
        # client-go's TerminalSize has two uint16.
        if isinstance(columns, int) and isinstance(rows, int) and 0 <= columns <= 0xFFFF and 0 <= rows <= 0xFFFF:
            return TerminalSize(columns, rows)
    raise ProtocolError(f"resize: {value!r} is not a terminal's size")


def exit_status(version: Version, code: int) -> bytes:
    """The content of the error stream for an exit code."""
    if not version.json_status:
        return b"" if code == 0 else f"command terminated with non-zero exit code: {code}".encode()
    if code == 0:
        return _json({"metadata": {}, "status": "Success"})
    return _json(
        {
            "metadata": {},
            "status": "Failure",
            "message": f"command terminated with non-zero exit code: {code}",
            # client-go turns only this reason with this cause into an exit status; the message is for people.
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
        }
    )


def failure_status(version: Version, message: str) -> bytes:
    """The content of the error stream for a failure without an exit code."""
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
