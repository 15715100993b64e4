# SPDX-License-Identifier: Apache-2.0
"""Work that a cancellation must not cut short."""

from __future__ import annotations

import asyncio
from typing import TypeVar

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
