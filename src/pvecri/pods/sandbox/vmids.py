# SPDX-License-Identifier: Apache-2.0
"""VMIDs for new pods.

Proxmox reserves a VMID only when the CT is created, so an allocated one may be refused: the caller tries another.
The nodes of a cluster may share a range, and do not talk to each other (decision 0082).
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Awaitable, Callable, Iterable, Set

from pvecri.config.settings import VmidRange
from pvecri.errors import ResourceExhausted
from pvecri.model import Vmid

FARTHEST = 16
"""Refusals after which the distance to the next candidate does not grow any more."""


GUESTS_AGE = 10.0
"""Seconds for which a list of the cluster's guests is used: Proxmox's own is as old."""


class Vmids:
    """VMIDs that no guest of the cluster has, as far as can be known before Proxmox is asked for a CT."""

    def __init__(
        self,
        limits: VmidRange,
        node: str,
        guests: Callable[[], Awaitable[Set[int]]],
        pods: Callable[[], Set[int]],
    ) -> None:
        """`guests` lists those of the cluster that our account sees, `pods` those of this node's pods."""
        self._allocator = VmidAllocator(limits, node)
        self._guests = guests
        self._pods = pods
        self._listed = 0.0

    async def refresh(self, refused: Set[int] = frozenset()) -> None:
        """Read which VMIDs are in use; `refused` are those of guests that the account may not see."""
        self.update(await self._guests() | refused)

    def update(self, guests: Set[int]) -> None:
        """Set the VMIDs of the cluster's guests, as just listed by Proxmox."""
        self._allocator.set_used(guests | self._pods())
        self._listed = time.monotonic()

    @property
    def free(self) -> int | None:
        """How many VMIDs of the range no known guest has; None before the first list of guests."""
        return self._allocator.free if self._listed else None

    async def allocate(self, refused: Set[int]) -> Vmid:
        """A VMID that is not known to be in use; `refused` are those that Proxmox has refused for this pod.

        ResourceExhausted if all are in use.
        """
        if refused and time.monotonic() - self._listed > GUESTS_AGE:  # other nodes have created CTs meanwhile
            await self.refresh(refused)
        try:
            return self._allocator.allocate(len(refused))
        except ResourceExhausted:
            await self.refresh(refused)  # guests may have been destroyed without us
            return self._allocator.allocate()

    def release(self, vmid: int) -> None:
        """Make a VMID available again. Idempotent."""
        self._allocator.release(vmid)


class VmidAllocator:
    """Allocates round robin, so that a released VMID is not reused at once."""

    def __init__(self, limits: VmidRange, node: str = "") -> None:
        """Both ends of `limits` are included. Each `node` begins at a place of its own in the range."""
        self._limits = limits
        self._size = limits.size
        self._place = zlib.crc32(node.encode()) % self._size
        """Of the next candidate, counted from the first VMID."""
        self._used: set[int] = set()

    def set_used(self, used: Iterable[int]) -> None:
        """Replace the set of VMIDs in use: those of all guests of the cluster and those allocated to pods."""
        self._used = {vmid for vmid in used if self._limits.first <= vmid <= self._limits.last}

    @property
    def free(self) -> int:
        """How many VMIDs of the range are not in use."""
        return self._size - len(self._used)

    def allocate(self, refusals: int = 0) -> Vmid:
        """A VMID that is not in use; ResourceExhausted if there is none in the range.

        `refusals` is how many VMIDs Proxmox has refused for the pod: with each the next is twice as far away, as
        they may all be in the row of another node's pods.
        """
        if refusals > 1:
            self._place += 2 ** min(refusals, FARTHEST) - 2
        for _ in range(self._size):
            candidate = self._limits.first + self._place % self._size
            # Proxmox shows a new guest with the name and status of the last one of its VMID for some seconds.
            self._place += 1
            if candidate not in self._used:
                self._used.add(candidate)
                return Vmid(candidate)
        raise ResourceExhausted(
            f"all {self._size} VMIDs from {self._limits.first} to {self._limits.last} are in use "
            "(proxmox.vmid_range sets the range)"
        )

    def release(self, vmid: int) -> None:
        """Make a VMID available again. Idempotent."""
        self._used.discard(vmid)
