# SPDX-License-Identifier: Apache-2.0
"""A write-behind queue for changes that end something, for times when the store cannot be written.

A full disk must not prevent that a container's exit is recorded or a pod removed, which frees space. What begins
something is refused meanwhile (store.py). After a crash the rows are outdated, and recovery.py reconciles them as
after every crash.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from pvecri.pods.store import StoreUnavailable

log = logging.getLogger(__name__)

Write = Callable[[], None]


class Unsaved:
    """Pending writes by row; a later one replaces an earlier one. Rows are written in the order of their changes.

    So a row that reuses the name or the VMID of a deleted one is written after the deletion.
    """

    def __init__(self) -> None:
        self._writes: dict[str, Write] = {}
        self._any = asyncio.Event()

    def __contains__(self, row: str) -> bool:
        return row in self._writes

    def __len__(self) -> int:
        return len(self._writes)

    def save(self, row: str, write: Write) -> None:
        """Write now, after the pending writes; StoreUnavailable if that fails."""
        self.flush()
        write()

    def save_when_possible(self, row: str, write: Write) -> None:
        """Write now if possible, else queue the write."""
        try:
            self.save(row, write)
        except StoreUnavailable as error:
            if not self._writes:
                log.warning("%s: changes that end something are kept in memory meanwhile", error)
            # A key that is set again keeps its place in a dict: it has to move to the end.
            self.forget([row])
            self._writes[row] = write
            self._any.set()

    def forget(self, rows: Iterable[str]) -> None:
        """Drop the pending writes of these rows: they are deleted with another one."""
        for row in rows:
            self._writes.pop(row, None)

    def flush(self) -> None:
        """Write all pending rows; StoreUnavailable for the first that fails."""
        while self._writes:
            row = next(iter(self._writes))
            self._writes[row]()
            del self._writes[row]
        self._any.clear()

    async def wait(self) -> None:
        """Wait until a write is pending."""
        await self._any.wait()
