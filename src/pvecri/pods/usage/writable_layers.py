# SPDX-License-Identifier: Apache-2.0
"""Sizes of containers' writable layers, cached: counting walks a directory tree.

A request returns the last count, with its timestamp, and starts the next one in the background.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Collection
from functools import partial

from pvecri.model import FilesystemUsage
from pvecri.supervision import Supervisor

FRESH = 10.0
"""Seconds for which a count is returned without a new one: the kubelet requests it every ten."""

STALE = 60.0
"""Seconds after which a count is too old to be returned."""

PARALLEL = 2
"""Counts at a time: they use the default thread pool, which everything else needs too."""


class WritableLayers:
    """The last counts. Not thread-safe."""

    def __init__(self, count: Callable[[str], Awaitable[FilesystemUsage]], supervisor: Supervisor) -> None:
        """`count` counts the writable layer of a container."""
        self._supervisor = supervisor
        self._count = count
        self._known: dict[str, tuple[float, FilesystemUsage | None]] = {}
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(PARALLEL)

    async def usage(self, container_id: str) -> FilesystemUsage | None:
        """The size of the container's writable layer; waits only for the first count, or if the last is STALE.

        None if counting fails, which is logged: it must not fail a list of many containers.
        """
        counted, known = self._known.get(container_id, (-math.inf, None))
        age = time.monotonic() - counted
        if age < FRESH:
            return known
        counting = self._under_way.get(container_id)
        if counting is None:
            refresh = partial(self._refresh, container_id)
            counting = self._supervisor.once("count of writable layer", refresh, container_id)
            self._under_way[container_id] = counting
        if age < STALE:
            return known
        # Other requests wait for the same count.
        await asyncio.shield(counting)
        return self._known[container_id][1] if container_id in self._known else None

    async def _refresh(self, container_id: str) -> None:
        """Count; if that fails the size is unknown until the next count."""
        usage = None
        try:
            async with self._slots:
                usage = await self._count(container_id)
        finally:
            self._under_way.pop(container_id, None)
            self._known[container_id] = (time.monotonic(), usage)

    def keep(self, container_ids: Collection[str]) -> None:
        """Drop the counts of all others."""
        for container_id in self._known.keys() - container_ids:
            del self._known[container_id]
