# SPDX-License-Identifier: Apache-2.0
"""The requests behind streaming URLs: what runs once the client of Exec, Attach or PortForward connects."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum

from pvecri.streaming.streams import CommandStreams


class Kind(Enum):
    """The CRI call; the value is the first segment of the URL's path."""

    EXEC = "exec"
    ATTACH = "attach"
    PORT_FORWARD = "portforward"


@dataclass(frozen=True)
class CommandRequest:
    """Exec or Attach.

    `run` is called once, with the requested streams, and returns the exit code. The client gets the message of a
    PvecriError that it raises. It is cancelled if the client disconnects.
    """

    kind: Kind
    stdin: bool
    stdout: bool
    stderr: bool
    tty: bool
    run: Callable[[CommandStreams], Awaitable[int]]


@dataclass(frozen=True)
class ForwardRequest:
    """PortForward.

    `connect` returns a non-blocking socket that is connected to a port of the pod, or raises OSError. `ports` are
    those of the CRI call, which only clients with WebSocket channels need.
    """

    ports: tuple[int, ...]
    connect: Callable[[int], Awaitable[socket.socket]]
    kind: Kind = Kind.PORT_FORWARD


Request = CommandRequest | ForwardRequest
