# SPDX-License-Identifier: Apache-2.0
"""Programs that run while a context lasts, and processes found by what they are called with."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

STOP_TIMEOUT = 90.0
"""Seconds. The embedded node lets running tasks end before it stops."""


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


def called(wanted: Callable[[Sequence[str]], bool]) -> list[psutil.Process]:
    """The processes whose command line, which has at least one word, is a wanted one."""
    # It is None for a process that has ended in between, and empty for a kernel thread.
    return [process for process in psutil.process_iter(["cmdline"]) if wanted(process.info["cmdline"] or [""])]


def with_descendants(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """These, and all that they and their children started, each once."""
    found = {process.pid: process for process in processes}
    for process in processes:
        try:
            found.update({child.pid: child for child in process.children(recursive=True)})
        except psutil.NoSuchProcess:
            continue
    return list(found.values())


def log_end(log: Path, lines: int = 10) -> str:
    """The last lines of a log, for an error."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
