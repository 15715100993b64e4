# SPDX-License-Identifier: Apache-2.0
"""ADD and DEL run side by side, GC alone (CNI specification, section 2, GC)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Exclusion:
    """Many may share, or one have it alone. Who wants it alone waits for those that share it, and no more come."""

    def __init__(self) -> None:
        self._entry = asyncio.Lock()
        self._sharing = 0
        self._empty = asyncio.Event()
        self._empty.set()

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        """Enter beside others."""
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
    async def alone(self) -> AsyncIterator[None]:
        """Enter when nobody else is in."""
        async with self._entry:
            await self._empty.wait()
            yield
