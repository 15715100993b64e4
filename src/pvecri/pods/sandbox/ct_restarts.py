# SPDX-License-Identifier: Apache-2.0
"""CTs that somebody has started after their pods had ended: stopped again.

`pct start`, `onboot`, HA or the second half of a reboot start an empty CT: its pod is NotReady for good, as the
CRI has no way back from there, and its containers and network are gone. Found by the CTs' cgroups, without a call
to Proxmox.
"""

from __future__ import annotations

import logging
from functools import partial

from pvecri.model import SandboxId, SandboxPhase
from pvecri.observability import metrics
from pvecri.pods.registry import PodEntry, Registry
from pvecri.pods.sandbox.ct import SandboxCts
from pvecri.pods.sandbox.ct_ownership import NotOwnCt
from pvecri.supervision import attempt_each

log = logging.getLogger(__name__)

INTERVAL = 5.0
"""Seconds between two searches."""


class RestartedCts:
    """`stop_all` stops the running CT of every ended pod, unless it is not the pod's any more (decision 0078)."""

    def __init__(self, registry: Registry, cts: SandboxCts) -> None:
        self._registry = registry
        self._cts = cts
        self._not_own: set[SandboxId] = set()
        """Pods whose VMID is another CT's by now: logged once, and not asked for again."""

    async def stop_all(self) -> None:
        """Stop them; Incomplete if one could not be stopped."""
        ended = [pod for pod in self._registry.pods() if pod.value.phase is SandboxPhase.STOPPED]
        self._not_own &= {pod.id for pod in ended}
        running = [pod for pod in ended if pod.id not in self._not_own and self._cts.runs(pod)]
        await attempt_each(
            "stop of restarted CTs",
            [(f"stopping CT {pod.value.vmid} of {pod.value.name}", partial(self._stop, pod)) for pod in running],
        )

    async def _stop(self, pod: PodEntry) -> None:
        async with pod.lock:
            # It may have been removed, or be about to be, meanwhile.
            if pod.value.phase is not SandboxPhase.STOPPED or not self._cts.runs(pod):
                return
            vmid, name = pod.value.vmid, pod.value.name
            try:
                await self._cts.stop_again(pod)
            except NotOwnCt as other:
                log.warning("%s: it runs, and is left as it is", other)
                self._not_own.add(pod.id)
            else:
                metrics.CT_CHANGES.labels("started").inc()
                log.warning("CT %d of pod %s was started after the pod had ended: stopped again", vmid, name)
