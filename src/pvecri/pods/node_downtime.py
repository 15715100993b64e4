# SPDX-License-Identifier: Apache-2.0
"""When the node went down before its last boot: the end of what ran then and had nobody to record it."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from pvecri.linux.processes import boot_time

INTERVAL = 10.0
"""Seconds between two calls of `refresh`."""


class NodeDowntime:
    """Keeps the time at which the daemon last ran, as the timestamp of a file in the state directory."""

    def __init__(self, file: Path, booted: int | None = None) -> None:
        """Read the time of the previous daemon process. `booted` is nanoseconds since the epoch."""
        self._file = file
        self._booted = boot_time() if booted is None else booted
        # A daemon that has run since the boot has recorded what ended by the boot.
        self._began = self._booted
        with suppress(FileNotFoundError):
            self._began = min(self._booted, file.stat().st_mtime_ns)

    async def refresh(self) -> None:
        """Keep the present time."""
        with suppress(OSError):  # a full or read-only filesystem: exit times become less exact
            self._file.touch()

    def end_of(self, started_at: int) -> int:
        """When a process that is gone ended at the latest; nanoseconds since the epoch, like its start.

        The time at which the node went down, if the process started before the last boot; else now.
        """
        return max(started_at, self._began) if started_at < self._booted else time.time_ns()
