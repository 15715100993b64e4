# SPDX-License-Identifier: Apache-2.0
"""Puts back what somebody has changed in Proxmox and Kubernetes decides: a running pod's limits, name and tags.

The list of the node's CTs, one request in each interval, shows most of that. A CT's config is read only if the
list shows a change, if the kernel shows another CPU weight than before, and once after the daemon's start, one CT
in each interval. Tags that others have added stay, and all options that are not the pod's (decision 0080).
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from functools import partial

from pvecri.config.settings import ProxmoxConfig
from pvecri.errors import FailedPrecondition
from pvecri.model import SandboxId, SandboxPhase
from pvecri.observability import metrics
from pvecri.pods.registry import PodEntry, Registry
from pvecri.pods.sandbox import ct_notes
from pvecri.pods.sandbox.ct import SandboxCts
from pvecri.pods.sandbox.ct_tags import own_tags
from pvecri.proxmox import ct_options
from pvecri.proxmox.answers import CtConfig, CtEntry
from pvecri.proxmox.api import ProxmoxApi
from pvecri.supervision import Step, attempt_each

log = logging.getLogger(__name__)

INTERVAL = 60.0
"""Seconds between two looks."""


@dataclass(frozen=True)
class _Seen:
    """What a look shows of a CT without reading its config."""

    entry: CtEntry
    cpu_weight: int | None


class CtSettings:
    """`look` puts back what was changed since the last one."""

    def __init__(self, registry: Registry, proxmox: ProxmoxApi, cts: SandboxCts, settings: ProxmoxConfig) -> None:
        self._registry = registry
        self._proxmox = proxmox
        self._cts = cts
        self._settings = settings
        self._begin = time.time_ns()
        self._in_order: dict[SandboxId, _Seen] = {}
        """What the last look showed of CTs whose config was as it should be."""
        self._logged: dict[SandboxId, str] = {}
        """The last change of a pod's CT that was logged: somebody may set it again and again."""

    async def look(self) -> None:
        """Look once; Incomplete if something could not be put back, or a running pod's CT is not listed."""
        # Before the list: a pod that starts meanwhile is not on it.
        pods = [pod for pod in self._registry.pods() if _settled(pod)]
        for gone in self._in_order.keys() - {pod.id for pod in pods}:
            self._in_order.pop(gone)
            self._logged.pop(gone, None)
        if not pods:
            return
        listed = {entry.vmid: entry for entry in await self._proxmox.cts()}
        steps: list[tuple[str, Step]] = []
        unread = next((pod.id for pod in pods if self._unread(pod)), None)
        for pod in pods:
            entry = listed.get(pod.value.vmid)
            if entry is not None and (entry.lock or not _settled(pod)):
                continue  # a change would be refused, or is being made by a call
            action = f"looking after CT {pod.value.vmid} of pod {pod.value.name}"
            if entry is None:
                steps.append((action, partial(self._unlisted, pod)))
                continue
            seen = _Seen(entry, self._cts.cpu_weight(pod))
            if pod.id == unread or self._may_have_changed(pod, seen):
                steps.append((action, partial(self._put_back, pod, seen)))
            elif not self._unread(pod):
                self._in_order[pod.id] = seen
        await attempt_each("settings of CTs", steps)

    def _unread(self, pod: PodEntry) -> bool:
        """Whether the CT may have been changed before this daemon process began, and was not read since."""
        return pod.id not in self._in_order and pod.value.created_at < self._begin

    def _may_have_changed(self, pod: PodEntry, seen: _Seen) -> bool:
        before = self._in_order.get(pod.id)
        if seen == before:
            return False
        if before is not None and seen.cpu_weight != before.cpu_weight:
            return True
        if self._tags_to_set(pod, seen.entry.tags):
            return True
        return ct_options.entry_differs(seen.entry, pod.value.ct_options, os.cpu_count() or 1)

    async def _put_back(self, pod: PodEntry, seen: _Seen) -> None:
        async with pod.lock:
            if pod.value.phase is not SandboxPhase.READY or not pod.alive:
                return
            config = await self._proxmox.ct_config(pod.value.vmid)
            changes = ct_options.changes(config, pod.value.ct_options)
            if tags := self._tags_to_set(pod, config.raw.get("tags", "")):
                changes["tags"] = tags
            if ct_notes.owner(config.description).sandbox != pod.id:  # they identify the CT once it is stopped
                changes["description"] = self._cts.notes(pod)
            if not changes:
                self._in_order[pod.id] = seen
                return
            await self._proxmox.configure_ct(pod.value.vmid, **changes)
        self._in_order[pod.id] = _Seen(seen.entry, self._cts.cpu_weight(pod))
        values = ", ".join(f"{name} {_shown(config, name)}" for name in sorted(changes))
        metrics.CT_CHANGES.labels("options").inc()
        again = self._logged.get(pod.id) == values
        self._logged[pod.id] = values
        log.log(
            logging.DEBUG if again else logging.WARNING,
            "CT %d of pod %s was changed in Proxmox (%s): put back, as Kubernetes decides",
            pod.value.vmid,
            pod.value.name,
            values,
        )

    def _tags_to_set(self, pod: PodEntry, found: str) -> str:
        """The value of `tags` if some of the pod's own are missing in `found`; empty if none is."""
        own = own_tags(self._settings, pod.value)
        return ct_options.missing_tags(found, own) if pod.value.tagged else ""

    async def _unlisted(self, pod: PodEntry) -> None:
        if not _settled(pod):
            return
        raise FailedPrecondition(
            f"CT {pod.value.vmid} of pod {pod.value.name} runs, but Proxmox does not list it: it was taken out of "
            "the pool (proxmox.pool), or its config was moved"
        )


def _shown(config: CtConfig, option: str) -> str:
    """An option's value for the log; notes may be long."""
    return config.raw.get(option, "unset").split("\n", 1)[0]


def _settled(pod: PodEntry) -> bool:
    """Whether the pod runs, no call changes it now, and what was set is known: not for one of an older version."""
    ready = pod.value.phase is SandboxPhase.READY and pod.alive
    return ready and bool(pod.value.ct_options) and not pod.lock.locked()
