# SPDX-License-Identifier: Apache-2.0
"""The service manager's side of a daemon: sd_notify(3), and the watchdog of sd_watchdog_enabled(3)."""

from __future__ import annotations

import os
import socket
from contextlib import suppress


class ServiceManager:
    """Tells systemd about the daemon's state. Without systemd, or without Type=notify, every call does nothing."""

    def __init__(self) -> None:
        """Takes the variables out of the environment: an OCI runtime would offer the socket to its container."""
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        microseconds = os.environ.pop("WATCHDOG_USEC", "")
        process = os.environ.pop("WATCHDOG_PID", str(os.getpid()))
        watched = microseconds.isdecimal() and process == str(os.getpid())
        self.watchdog_interval: float | None = int(microseconds) / 2_000_000 if watched else None
        """Seconds after which `alive` is due again, half the time that systemd waits; None without a watchdog."""

    def ready(self) -> None:
        """The daemon serves."""
        self._send("READY=1")

    def reloading(self) -> None:
        """The configuration is being read again; `ready` ends that."""
        self._send("RELOADING=1")

    def stopping(self) -> None:
        """The daemon ends."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """The event loop runs."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={text}")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        # An address that begins with @ is an abstract one (unix(7)).
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        # Whatever becomes of the message, the daemon goes on: systemd acts if it misses one.
        with (
            suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection,
        ):
            connection.setblocking(False)
            connection.sendto(message.encode(), address)
