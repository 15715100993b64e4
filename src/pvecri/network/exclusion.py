# SPDX-License-Identifier: Apache-2.0
"""A readers-writer lock: ADD and DEL share it, GC excludes them (CNI specification, section 2, GC)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Exclusion:
    """Any number of shared holders, or one exclusive one. A waiting exclusive one blocks new shared ones."""

    def __init__(self) -> None:
        self._entry = asyncio.Lock()
        self._sharing = 0
        self._empty = asyncio.Event()
        self._empty.set()

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        """Acquire it together with other shared holders."""
        async with self._entry:
            self._sharing += 1
            self._empty.clear()
        try:
            yield
        finally:
            self._sharing -= 1
            if not self._sharing:
                self._empty.set()

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Acquire it alone."""
        async with self._entry:
            # With `_entry` held until the end: new shared holders queue behind this one.
            await self._empty.wait()
            yield
