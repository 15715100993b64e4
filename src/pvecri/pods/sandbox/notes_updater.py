# SPDX-License-Identifier: Apache-2.0
"""Keeps the containers' states in the notes of running pods' CTs up to date (ct_notes.py), in the background.

One request a pod and minute at most, one after the other, and none if nothing has changed or if Proxmox is away.
Notes of a CT that has stopped stay as they are: its owner would have to be confirmed first.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from pvecri.errors import Unavailable
from pvecri.model import SandboxId, SandboxPhase
from pvecri.pods.registry import PodEntry, Registry
from pvecri.pods.sandbox.ct import SandboxCts
from pvecri.proxmox.errors import CtHidden, CtNotFound
from pvecri.supervision import attempt

INTERVAL = 5.0
"""Seconds between two comparisons, which cost some microseconds a pod."""

SETTLE_TIME = 10.0
"""Seconds after a change: containers are created and started one after the other."""

PAUSE = 60.0
"""Seconds between two requests for a pod, also if the first has failed."""


class NotesUpdater:
    """`update` writes the notes that are due."""

    def __init__(
        self,
        registry: Registry,
        cts: SandboxCts,
        proxmox_ready: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._cts = cts
        self._proxmox_ready = proxmox_ready
        self._clock = clock
        self._due: dict[SandboxId, float] = {}
        """When the notes of pods that differ are to be written."""
        self._written: dict[SandboxId, float] = {}
        """When a pod's notes were last written, or tried to be."""
        self._resume = 0.0
        """No request before: the last one found Proxmox unavailable, for example without quorum."""

    async def update(self) -> None:
        """Write the notes that are due; failures are reported and tried again later."""
        if not self._proxmox_ready() or self._clock() < self._resume:
            return
        pods = [pod for pod in self._registry.pods() if _is_running(pod)]
        ids = {pod.id for pod in pods}
        for gone in (self._due.keys() | self._written.keys()) - ids:
            self._due.pop(gone, None)
            self._written.pop(gone, None)
        for pod in pods:
            if self._is_due(pod):
                action = f"updating the notes of CT {pod.value.vmid} (pod {pod.value.name})"
                error = await attempt(partial(self._write, pod), "notes of CTs", action)
                # CtHidden is one CT's affair.
                if isinstance(error, Unavailable) and not isinstance(error, CtHidden):
                    self._resume = self._clock() + PAUSE
                    return

    def _is_due(self, pod: PodEntry) -> bool:
        if not self._cts.notes_differ(pod):
            self._due.pop(pod.id, None)
            return False
        now = self._clock()
        earliest = max(now + SETTLE_TIME, self._written.get(pod.id, now - PAUSE) + PAUSE)
        return self._due.setdefault(pod.id, earliest) <= now

    async def _write(self, pod: PodEntry) -> None:
        self._written[pod.id] = self._clock()
        del self._due[pod.id]
        # It may have ended while the notes of others were written.
        if _is_running(pod):
            with suppress(CtNotFound):
                await self._cts.write_notes(pod)


def _is_running(pod: PodEntry) -> bool:
    return pod.value.phase is SandboxPhase.READY and pod.alive
