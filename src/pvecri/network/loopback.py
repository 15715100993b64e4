# SPDX-License-Identifier: Apache-2.0
"""The loopback interface of a pod. CNI's plugin `loopback` would be a process for two ioctls."""

from __future__ import annotations

import fcntl
import socket
import struct
from pathlib import Path

from pvecri.errors import NotFound
from pvecri.linux import namespaces

SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
IFF_UP = 0x1

_IFREQ = struct.Struct("16sH22x")


def bring_up(netns: Path) -> None:
    """Set lo up in a network namespace; the kernel adds 127.0.0.1 and ::1. Idempotent.

    Blocks: call it in a thread. NotFound if the namespace does not exist.
    """
    try:
        control = namespaces.open_socket(netns, socket.AF_INET, socket.SOCK_DGRAM)
    except FileNotFoundError as error:
        raise NotFound(f"network namespace {netns} does not exist") from error
    with control:
        _, flags = _IFREQ.unpack(fcntl.ioctl(control, SIOCGIFFLAGS, _IFREQ.pack(b"lo", 0)))
        if not flags & IFF_UP:
            fcntl.ioctl(control, SIOCSIFFLAGS, _IFREQ.pack(b"lo", flags | IFF_UP))
