# SPDX-License-Identifier: Apache-2.0
"""Processes found by what they are called with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import psutil


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
