# SPDX-License-Identifier: Apache-2.0
"""What a streaming URL stands for: the part of Exec, Attach and PortForward that begins when the client comes."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum

from pvecri.streaming.streams import CommandStreams


class Kind(Enum):
    """Which call; the value is the first part of the URL's path."""

    EXEC = "exec"
    ATTACH = "attach"
    PORT_FORWARD = "portforward"


@dataclass(frozen=True)
class CommandRequest:
    """Exec or Attach.

    `run` is called once, with the streams that are asked for here, and returns the exit code. It raises a
    PvecriError, whose message the client gets, and is cancelled when the client leaves.
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

    `connect` gives a non-blocking socket that is connected to a port of the pod, or raises OSError. `ports` are
    those that the CRI call named: only clients that forward over WebSocket channels need them.
    """

    ports: tuple[int, ...]
    connect: Callable[[int], Awaitable[socket.socket]]
    kind: Kind = Kind.PORT_FORWARD


Request = CommandRequest | ForwardRequest
