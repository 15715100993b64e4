# SPDX-License-Identifier: Apache-2.0
"""Destroys the CTs of removed pods in the background (decision 0092).

RemovePodSandbox returns once the pod's name and id are free. What is left is a CT without processes and its row
of the store, which keeps the VMID from being used again and names the CT after a crash. Each CT is tried again,
with growing pauses, until Proxmox has destroyed it: while Proxmox is down, while the CT is locked or protected,
while it has volumes of an operator's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from pvecri.errors import FailedPrecondition
from pvecri.model import SandboxId
from pvecri.pods.registry import PodEntry, Registry
from pvecri.pods.sandbox.ct import SandboxCts
from pvecri.supervision import Supervisor, describe

WORK = "removal"

CONCURRENT = 4
"""CTs that are destroyed at once if no pod's CT is being created; else one, as Proxmox's tasks share the node."""


@dataclass(frozen=True)
class Removal:
    """A CT that is to be destroyed, with its pod's name; `error` is why the last try failed, if one did."""

    vmid: int
    pod: str
    error: str


class CtRemovals:
    """`add` is called by what removes pods, `start` once after the store was read."""

    def __init__(self, registry: Registry, cts: SandboxCts, supervisor: Supervisor) -> None:
        self._registry = registry
        self._cts = cts
        self._supervisor = supervisor
        self._tasks: dict[SandboxId, asyncio.Task[None]] = {}
        self._errors: dict[SandboxId, str] = {}
        self._running = 0
        self._changed = asyncio.Condition()
        """Notified after each try."""
        cts.removal_ended = self.wait_for_any

    def start(self) -> None:
        """Go on with the removals of the previous daemon process."""
        for pod in self._registry.removed():
            self._begin(pod)

    def add(self, pod: PodEntry) -> None:
        """Free the pod's name and id, and destroy its CT in the background. Idempotent.

        The pod has no containers and no network any more.
        """
        self._registry.retire_pod(pod)
        self._begin(pod)

    def pending(self) -> list[Removal]:
        """The CTs that are not destroyed yet."""
        return [
            Removal(pod.value.vmid, pod.value.name, self._errors.get(pod.id, ""))
            for pod in self._registry.removed()
        ]

    async def wait(self, sandbox_id: SandboxId, timeout: float) -> None:
        """Wait until no CT of an earlier pod with this id is left; FailedPrecondition after `timeout` seconds."""
        task = self._tasks.get(sandbox_id)
        if task is None:
            return
        done, _ = await asyncio.wait([task], timeout=timeout)
        if not done:
            reason = self._errors.get(sandbox_id, "Proxmox has not destroyed it yet")
            raise FailedPrecondition(f"the CT of the removed pod {sandbox_id} is still there: {reason}")

    async def wait_for_any(self) -> bool:
        """Wait for the next end of a try; False if there is no CT left whose removal has not failed yet."""
        if not self._is_promising():
            return False
        async with self._changed:
            if self._is_promising():
                await self._changed.wait()
        return True

    def _is_promising(self) -> bool:
        return any(pod.id not in self._errors for pod in self._registry.removed())

    def _begin(self, pod: PodEntry) -> None:
        if pod.id in self._tasks:
            return
        subject = f"CT {pod.value.vmid} (pod {pod.value.name})"
        self._tasks[pod.id] = self._supervisor.until_done(WORK, partial(self._remove, pod), subject)

    async def _remove(self, pod: PodEntry) -> None:
        """Repeatable: a CT that is gone is no error."""
        async with self._turn():
            try:
                await self._cts.destroy(pod)
            except Exception as error:
                self._errors[pod.id] = describe(error)
                raise
            self._errors.pop(pod.id, None)
            self._registry.drop_pod(pod)
            del self._tasks[pod.id]

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        async with self._changed:
            await self._changed.wait_for(self._is_free)
            self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            async with self._changed:
                self._changed.notify_all()

    def _is_free(self) -> bool:
        return self._running < (CONCURRENT if self._cts.idle.is_set() else 1)
