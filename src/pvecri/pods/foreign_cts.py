# SPDX-License-Identifier: Apache-2.0
"""CTs of this node that look like pods' and are none of this daemon's: found and reported, never changed.

A clone or a restored backup of a pod's CT, a copied config, the CTs of another installation or of a lost database.
Whose they are only a person can know: `pvecri repair` (cli/repair.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence, Set
from dataclasses import dataclass
from enum import Enum

from pvecri.observability import metrics
from pvecri.pods.registry import Registry
from pvecri.pods.sandbox import ct_notes
from pvecri.proxmox.answers import CtConfig, Guest
from pvecri.proxmox.api import ProxmoxApi
from pvecri.proxmox.errors import CtHidden, CtNotFound

log = logging.getLogger(__name__)

INTERVAL = 300.0
"""Seconds between two searches. Each reads the config of every CT of the node that is no pod's."""


class Reason(Enum):
    """Why a CT with a pod's notes is no pod's: the metric's label."""

    COPY = "copy"
    OTHER_INSTALLATION = "other_installation"
    UNKNOWN_POD = "unknown_pod"


@dataclass(frozen=True)
class ForeignCt:
    """A CT with a pod's notes: `pod` is NAMESPACE/NAME, `sandbox` and `installation` are ids."""

    vmid: int
    name: str
    pod: str
    sandbox: str
    installation: str
    reason: Reason
    detail: str

    def __str__(self) -> str:
        return f"CT {self.vmid} ({self.name}) has the notes of pod {self.pod or self.sandbox}, but {self.detail}"


def foreign_ct(vmid: int, config: CtConfig, installation: str) -> ForeignCt | None:
    """What a CT is that the store of `installation` does not have; None if its notes name no pod. Pure."""
    owner = ct_notes.owner(config.description)
    if not owner.sandbox:
        return None
    if owner.vmid not in (0, vmid):
        reason, detail = Reason.COPY, f"its notes are those of CT {owner.vmid}: a clone or a restored backup"
    elif owner.installation != installation:
        reason = Reason.OTHER_INSTALLATION
        other, this = owner.installation or "unknown", installation or "none, as it has no database"
        detail = f"they are of installation {other}, and this one's id is {this}"
    else:
        reason, detail = Reason.UNKNOWN_POD, "this installation has no such pod with this CT"
    return ForeignCt(vmid, config.hostname, owner.pod, owner.sandbox, owner.installation, reason, detail)


async def find(
    proxmox: ProxmoxApi,
    node: str,
    known: Callable[[], Set[int]],
    installation: str,
    listed: Callable[[Sequence[Guest]], None] = lambda _: None,
) -> list[ForeignCt]:
    """The foreign CTs of `node` that our account sees, by VMID; `known` returns the VMIDs of the store's pods.

    `listed` gets the cluster's guests right after they were read.
    """
    found = []
    guests = await proxmox.guests()
    listed(guests)
    for guest in sorted(guests, key=lambda guest: guest.vmid):
        # Also outside of proxmox.vmid_range: Proxmox's UI suggests the next free VMID for a clone.
        if guest.type != "lxc" or guest.node != node or guest.vmid in known():
            continue
        try:
            config = await proxmox.ct_config(guest.vmid)
        except (CtNotFound, CtHidden):  # destroyed meanwhile, or being created
            continue
        # Again: a pod's VMID is stored before its CT is created.
        foreign = None if guest.vmid in known() else foreign_ct(guest.vmid, config, installation)
        if foreign is not None:
            found.append(foreign)
    return found


class ForeignCts:
    """Searches again and again; `found` is the result of the last search, each logged once."""

    def __init__(
        self,
        proxmox: ProxmoxApi,
        registry: Registry,
        node: str,
        installation: str,
        listed: Callable[[Sequence[Guest]], None] = lambda _: None,
    ) -> None:
        """`listed`: see `find`."""
        self._listed = listed
        self._proxmox = proxmox
        self._registry = registry
        self._node = node
        self._installation = installation
        self.found: list[ForeignCt] = []

    async def search(self) -> None:
        """Search once."""
        found = await find(self._proxmox, self._node, self._known, self._installation, self._listed)
        for foreign in found:
            if foreign not in self.found:
                log.warning("%s: it is left as it is; `pvecri repair` lists such CTs", foreign)
        self.found = found
        reasons = Counter(foreign.reason for foreign in found)
        for reason in Reason:
            metrics.FOREIGN_CTS.labels(reason.value).set(reasons[reason])

    def pause(self) -> Awaitable[None]:
        """Sleep until the next search is due."""
        return asyncio.sleep(INTERVAL)

    def _known(self) -> Set[int]:
        return {entry.value.vmid for entry in self._registry.cts()}
