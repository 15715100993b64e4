# SPDX-License-Identifier: Apache-2.0
"""VMIDs for new pods.

Proxmox reserves a VMID only when the CT is created, so an allocated one may be refused: the caller tries the next.
"""

from __future__ import annotations

from collections.abc import Iterable

from pvecri.config import VmidRange
from pvecri.errors import ResourceExhausted
from pvecri.model import Vmid


class VmidAllocator:
    """Allocates round robin, so that a released VMID is not reused at once."""

    def __init__(self, limits: VmidRange) -> None:
        """Both ends of `limits` are included."""
        self._limits = limits
        self._next = limits.first
        self._used: set[int] = set()

    def set_used(self, used: Iterable[int]) -> None:
        """Replace the set of VMIDs in use: those of all guests of the cluster and those allocated to pods."""
        self._used = {vmid for vmid in used if self._limits.first <= vmid <= self._limits.last}

    def allocate(self) -> Vmid:
        """A VMID that is not in use; ResourceExhausted if there is none in the range."""
        size = self._limits.last - self._limits.first + 1
        for _ in range(size):
            candidate = self._next
            # Proxmox shows a new guest with the name and status of the last one of its VMID for some seconds.
            self._next = self._limits.first + (candidate - self._limits.first + 1) % size
            if candidate not in self._used:
                self._used.add(candidate)
                return Vmid(candidate)
        raise ResourceExhausted(
            f"all {size} VMIDs from {self._limits.first} to {self._limits.last} are in use "
            "(proxmox.vmid_range sets the range)"
        )

    def release(self, vmid: int) -> None:
        """Make a VMID available again. Idempotent."""
        self._used.discard(vmid)
