# SPDX-License-Identifier: AGPL-3.0-or-later
"""A client of the command socket by which LXC's tools talk to a container's monitor.

LXC keeps this protocol stable between its releases, since new tools must reach monitors that an older
version started (lxc: src/lxc/commands.h). Asking it here saves a process for each question.
"""

from __future__ import annotations

import os
import socket
import struct
from enum import IntEnum
from pathlib import Path

_REQUEST = struct.Struct("@iiP")
_RESPONSE = struct.Struct("@iiQ")
_CREDENTIALS = struct.Struct("@III")
_PEERCRED = struct.Struct("@iII")


class LxcState(IntEnum):
    """LXC's lxc_state_t."""

    STOPPED = 0
    STARTING = 1
    RUNNING = 2
    STOPPING = 3
    ABORTING = 4
    FREEZING = 5
    FROZEN = 6
    THAWED = 7


class _Command(IntEnum):
    GET_STATE = 3
    GET_INIT_PID = 4


def socket_name(lxc_dir: Path) -> str:
    """The abstract socket of the container in ``lxc_dir`` (no leading NUL), as /proc/net/unix shows it."""
    return f"{lxc_dir}/command"


def state(lxc_dir: Path) -> LxcState:
    """The container's state; STOPPED when no monitor runs."""
    answer = _ask(lxc_dir, _Command.GET_STATE)
    return LxcState.STOPPED if answer is None else LxcState(answer)


def init_pid(lxc_dir: Path) -> int | None:
    """The pid of the container's init as the host sees it, None when no monitor runs."""
    answer = _ask(lxc_dir, _Command.GET_INIT_PID)
    # LXC hands a pid or a negative errno through a pointer-sized field.
    if answer is None or not 0 < answer < 1 << 31:
        return None
    return answer


def monitor_pid(lxc_dir: Path) -> int | None:
    """The pid of the container's monitor (lxc-start), None when none runs."""
    with _connect(lxc_dir) as connection:
        if connection is None:
            return None
        # Whoever connects gets the credentials of the process that called listen(2): unix(7).
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
        pid: int = _PEERCRED.unpack(credentials)[0]
        return pid


def _ask(lxc_dir: Path, command: _Command) -> int | None:
    with _connect(lxc_dir) as connection:
        if connection is None:
            return None
        credentials = _CREDENTIALS.pack(os.getpid(), os.getuid(), os.getgid())
        ancillary = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, credentials)]
        try:
            connection.sendmsg([_REQUEST.pack(command, 0, 0)], ancillary)
            answer = connection.recv(_RESPONSE.size, socket.MSG_WAITALL)
        except (ConnectionError, TimeoutError):
            return None  # the monitor ended between the connect and the answer
    if len(answer) < _RESPONSE.size:
        return None
    _result, _length, data = _RESPONSE.unpack(answer)
    return int(data)


class _connect:  # noqa: N801 - a context manager that reads as a function
    """A connection to the monitor for a ``with`` block; None when none listens."""

    def __init__(self, lxc_dir: Path) -> None:
        self._name = "\0" + socket_name(lxc_dir)
        self._socket: socket.socket | None = None

    def __enter__(self) -> socket.socket | None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        # The monitor is single-threaded: it answers at once or is about to end.
        connection.settimeout(5)
        try:
            connection.connect(self._name)
        except (ConnectionRefusedError, FileNotFoundError):
            connection.close()
            return None
        self._socket = connection
        return connection

    def __exit__(self, *_exc: object) -> None:
        if self._socket is not None:
            self._socket.close()
