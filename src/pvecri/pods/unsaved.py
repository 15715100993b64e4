# SPDX-License-Identifier: Apache-2.0
"""Changes that end something, while the store cannot be written: kept in memory, and written when it can be.

A full disk must not keep a container from being recorded as ended, nor a pod from being removed: that is how space
comes back. What begins something is refused meanwhile (store.py). After a crash the rows are older than the truth,
which is found out again as after every crash (recovery.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from pvecri.pods.store import StoreUnavailable

log = logging.getLogger(__name__)

Write = Callable[[], None]


class Unsaved:
    """Writes by row, of which the last one counts. Rows are written in the order in which they were last changed.

    So a row that needs another one gone, for its name or its VMID, comes after it.
    """

    def __init__(self) -> None:
        self._writes: dict[str, Write] = {}
        self._any = asyncio.Event()

    def __contains__(self, row: str) -> bool:
        return row in self._writes

    def __len__(self) -> int:
        return len(self._writes)

    def save(self, row: str, write: Write) -> None:
        """Write now, after what waits; StoreUnavailable when that cannot be."""
        self.flush()
        write()

    def save_when_possible(self, row: str, write: Write) -> None:
        """Write now if that can be, else later."""
        try:
            self.save(row, write)
        except StoreUnavailable as error:
            if not self._writes:
                log.warning("%s: changes that end something are kept in memory meanwhile", error)
            self.forget([row])
            self._writes[row] = write
            self._any.set()

    def forget(self, rows: Iterable[str]) -> None:
        """Drop what waits for these rows: they go with another one."""
        for row in rows:
            self._writes.pop(row, None)

    def flush(self) -> None:
        """Write all that waits; StoreUnavailable at the first that cannot be."""
        while self._writes:
            row = next(iter(self._writes))
            self._writes[row]()
            del self._writes[row]
        self._any.clear()

    async def wait(self) -> None:
        """Until something waits."""
        await self._any.wait()
