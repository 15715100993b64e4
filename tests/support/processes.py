# SPDX-License-Identifier: Apache-2.0
"""Programs that a test starts, ends and starts again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]
SOURCES = f"{_ROOT / 'src'}{os.pathsep}{_ROOT / 'embedded/src'}"
"""PYTHONPATH of the programs under test: this checkout's pvecri and embedded node, whatever is installed."""


def need(program: str, package: str) -> None:
    """Skip the test on a machine without this program."""
    if not shutil.which(program):
        pytest.skip(f"needs {program} ({package})")


class Program:
    """One program at a time, with what it says in a file."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.command = command
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Of the one that was started last."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it; it is not running."""
        assert not self.running
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                env={**os.environ, "PYTHONPATH": SOURCES},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.log.parent,
            )

    def send(self, number: signal.Signals) -> None:
        """Send it a signal that does not end it."""
        assert self._process is not None
        self._process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait; the exit status as subprocess has it, 0 when it was not running."""
        if self._process is None:
            return 0
        self._process.send_signal(number)
        return self._process.wait()
