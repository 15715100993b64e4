# SPDX-License-Identifier: Apache-2.0
"""Programs that run while a context lasts."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

START_TIMEOUT = 60.0
STOP_TIMEOUT = 90.0
"""Seconds. The embedded node lets running tasks end before it stops."""


class StartError(Exception):
    """A program did not come up; the message carries the end of its log."""


@contextmanager
def running(command: Sequence[str], log: Path, stdout: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A program in a session of its own, so that Ctrl-C reaches us and not it; asked to end afterwards.

    What it says goes to `log`, its standard output to `stdout` when given. Raises OSError when it cannot be run.
    """
    with log.open("ab") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout or file,
            stderr=file,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def log_end(log: Path, lines: int = 10) -> str:
    """The last lines of a log, for an error."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
