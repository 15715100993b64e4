# SPDX-License-Identifier: Apache-2.0
"""Work that a cancellation must not cut short: half of it would leave something behind."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def ended(task: asyncio.Task[T]) -> asyncio.CancelledError | None:
    """Wait until `task` has ended, well or not, however often the caller is cancelled meanwhile.

    Returns the cancellation, if there was one, for the caller to raise when it has seen to the task's result.
    """
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    return cancelled


async def finish(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end even when the caller is cancelled; the cancellation goes on after it.

    For what cannot be stopped anyway, such as a worker thread, and for programs that must not be left half way.
    """
    task = asyncio.ensure_future(work)
    cancelled = await ended(task)
    if cancelled is None:
        return task.result()
    if not task.cancelled():
        task.exception()  # the cancellation is what the caller hears of
    raise cancelled
