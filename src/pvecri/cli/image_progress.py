# SPDX-License-Identifier: Apache-2.0
"""The progress of `pvecri image`, on a terminal."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from pvecri.images.pull.progress import Progress

T = TypeVar("T")

REDRAW = 0.2
"""Seconds between two updates of the progress bar."""
BAR = 24
"""Characters of the progress bar."""


async def with_progress(work: Awaitable[T], what: str, progress: Callable[[], Progress]) -> T:
    """Wait for `work`; on a terminal show a progress bar, and a summary in the end."""
    task = asyncio.ensure_future(work)
    if not sys.stderr.isatty():
        return await task
    begin = time.monotonic()
    while not task.done():
        line = bar(what, progress(), time.monotonic() - begin)
        # A line as wide as the terminal would wrap, and \r would return to its second half.
        _draw(line[: os.get_terminal_size(sys.stderr.fileno()).columns - 1])
        await asyncio.wait([task], timeout=REDRAW)
    _draw("")
    result = await task
    print(summary(what, progress(), time.monotonic() - begin), file=sys.stderr)
    return result


def _draw(line: str) -> None:
    # Erase the line (CSI K) and draw it again.
    print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


def bar(what: str, progress: Progress, seconds: float) -> str:
    """The progress of a pull, as one line; the elapsed time only, if nothing else is known."""
    if not progress.layers:
        return f"{seconds:.0f} s  {what}"
    part = progress.fetched / progress.total if progress.total else 1.0
    filled = "#" * int(part * BAR)
    size = f"{shown_size(progress.fetched)} of {shown_size(progress.total)}"
    return f"[{filled:<{BAR}}] {size}, {progress.done} of {progress.layers} layers, {seconds:.0f} s  {what}"


def summary(what: str, progress: Progress, seconds: float) -> str:
    """The result of a pull, as one line."""
    parts = [f"{seconds:.1f} s"]
    if progress.layers:
        parts.insert(0, f"{progress.layers} layers with {shown_size(progress.total)}")
    if progress.present:
        parts.insert(-1, f"{progress.present} already present")
    return f"{what}: {', '.join(parts)}"


def shown_size(size: float) -> str:
    """A number of bytes, in the unit that suits it."""
    units = ["GiB", "MiB", "KiB"]
    if size < 1024:
        return f"{size:.0f} B"
    size /= 1024
    while size >= 1024 and len(units) > 1:
        size /= 1024
        units.pop()
    return f"{size:.1f} {units[-1]}"
