# SPDX-License-Identifier: Apache-2.0
"""Which VMID a new pod takes.

Proxmox reserves a VMID when the CT is created and not before, so the allocator only proposes: it walks the
configured range, leaves out what is known to be taken, and when the create call says "already exists" (another
node was faster) that number is taken too and the next one is proposed.
"""

from __future__ import annotations

from collections.abc import Iterable

from pvecri.config import VmidRange
from pvecri.errors import ResourceExhausted
from pvecri.model import Vmid


class VmidAllocator:
    """Proposes each VMID of the range in turn, so that a number freed is not used again at once."""

    def __init__(self, limits: VmidRange) -> None:
        """Both ends of `limits` are included."""
        self._limits = limits
        self._next = limits.first
        self._taken: set[int] = set()

    def replace(self, taken: Iterable[int]) -> None:
        """Learn anew which numbers are taken: those of all guests of the cluster, and those proposed for pods."""
        self._taken = {vmid for vmid in taken if self._limits.first <= vmid <= self._limits.last}

    def take(self) -> Vmid:
        """A number that is not known to be taken; ResourceExhausted when the range is full."""
        size = self._limits.last - self._limits.first + 1
        for _ in range(size):
            candidate = self._next
            self._next = self._limits.first + (candidate - self._limits.first + 1) % size
            if candidate not in self._taken:
                self._taken.add(candidate)
                return Vmid(candidate)
        raise ResourceExhausted(
            f"all {size} VMIDs from {self._limits.first} to {self._limits.last} are taken "
            "(proxmox.vmid_range sets the range)"
        )

    def give_back(self, vmid: int) -> None:
        """The CT with this number is gone. Idempotent."""
        self._taken.discard(vmid)
