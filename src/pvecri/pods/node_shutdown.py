# SPDX-License-Identifier: Apache-2.0
"""Whether the node is going down: then nothing new is started (decision 0090)."""

from __future__ import annotations

from pathlib import Path

from pvecri.errors import Unavailable

MARKER = "node-shutdown"
"""A file in the run directory, which `pvecri stop-pods --at-shutdown` creates."""


class NodeShutdown:
    """A file, because the command that announces the shutdown is another process; one stat(2) a request."""

    def __init__(self, run_dir: Path) -> None:
        self._marker = run_dir / MARKER

    def announce(self) -> None:
        """Let the daemon refuse what it would start. Idempotent."""
        self._marker.touch()

    def forget(self) -> None:
        """Allow all again: the daemon is being started, which systemd does not do during a shutdown.

        /run outlives a reboot of the user space alone (systemd-soft-reboot.service(8)).
        """
        self._marker.unlink(missing_ok=True)

    @property
    def under_way(self) -> bool:
        """Whether it has been announced."""
        return self._marker.exists()

    def check(self) -> None:
        """Unavailable if it has been announced."""
        if self.under_way:
            raise Unavailable("the node is shutting down: no pod or container is started")
