# SPDX-License-Identifier: Apache-2.0
"""The pods of fronts: a CT for each, made with its first container, destroyed when the front has the pod no more.

A front does not say "run a pod": it creates a container for the sandbox itself (containerd; CRI-O, if the pod's
containers share PIDs), or just the pod's first container (CRI-O). What the front shows of the pod's end is the
deletion of the sandbox's container, or that the namespaces it keeps for the pod are gone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from pvecri.errors import AlreadyExists, FailedPrecondition
from pvecri.linux import limits
from pvecri.linux.cgroups import Cgroups
from pvecri.model import (
    Resources,
    Sandbox,
    SandboxConfig,
    SandboxId,
    SandboxPhase,
    UserNamespaceDecision,
    UserNamespaceKind,
    UserNamespaceReason,
)
from pvecri.pods import files
from pvecri.pods.front.wanted import WantedSandbox, with_free_attempt
from pvecri.pods.registry import PodEntry, Registry
from pvecri.pods.sandbox.ct import SandboxCts
from pvecri.pods.sandbox.ct_removals import CtRemovals
from pvecri.pods.sandbox.ct_tags import CtTags
from pvecri.pods.sandbox.kubelet_cgroups import pod_cgroup
from pvecri.pods.sandbox.stop import SandboxTeardown, remove_files
from pvecri.pods.warm.pool import WarmPool
from pvecri.supervision import attempt, attempt_each

log = logging.getLogger(__name__)

SWEEP_INTERVAL = 10.0
"""Seconds between two looks for pods that their fronts have ended without a call."""

EARLIER_CT_TIMEOUT = 60.0
"""Seconds to wait for the destroy of the CT of a removed pod with the same id."""

_CPU_PERIOD = 100_000


class FrontSandboxes:
    """Makes and ends the CTs of fronts' pods; calls for different pods do not wait for each other."""

    def __init__(
        self,
        registry: Registry,
        cts: SandboxCts,
        removals: CtRemovals,
        tags: CtTags,
        teardown: SandboxTeardown,
        warm: WarmPool,
        cgroups: Cgroups,
    ) -> None:
        self._registry = registry
        self._cts = cts
        self._removals = removals
        self._tags = tags
        self._teardown = teardown
        self._warm = warm
        self._cgroups = cgroups
        self._making: dict[SandboxId, asyncio.Lock] = {}

    async def ensure(self, wanted: WantedSandbox) -> PodEntry:
        """The pod, with its CT; made if there is none.

        FailedPrecondition if its CT has ended: the front must make another pod.
        """
        # Several containers of a pod may be created at once; the first makes the CT.
        lock = self._making.setdefault(wanted.id, asyncio.Lock())
        try:
            async with lock:
                pod = self._find(wanted.id)
                if pod is None:
                    return await self._make(wanted)
        finally:
            if not lock.locked():
                self._making.pop(wanted.id, None)
        if pod.value.front is None:
            raise AlreadyExists(f"pod sandbox {pod.id} is not a pod of {wanted.front.kind.value}")
        if pod.value.phase is not SandboxPhase.READY or not pod.alive:
            raise FailedPrecondition(f"CT {pod.value.vmid} of pod {pod.value.name} has ended")
        return pod

    def _find(self, sandbox_id: SandboxId) -> PodEntry | None:
        return next(
            (
                pod
                for pod in self._registry.pods()
                if pod.id == sandbox_id or (pod.value.front and pod.value.front.sandbox_id == sandbox_id)
            ),
            None,
        )

    async def _make(self, wanted: WantedSandbox) -> PodEntry:
        # podman starts a container again by a delete and a create with the same id.
        await self._removals.wait(wanted.id, EARLIER_CT_TIMEOUT)
        config = self._with_limits(wanted.config)
        pod = await self._warm.obtain(partial(self._reserve, wanted, config), self._start)
        self._tags.wanted.set()
        log.info("pod %s of %s has CT %d", pod.value.name, wanted.front.kind.value, pod.value.vmid)
        return pod

    async def _start(self, pod: PodEntry) -> None:
        """Create the CT of a pod that has claimed none, and make the pod READY."""
        claimed = pod.init is not None
        async with pod.lock, AsyncExitStack() as undo:
            # Undone last: the CT is left to ct_removals.py, or all if another undo has failed.
            undo.callback(self._teardown.drop, pod)
            # Pushed before the call: a create that is cancelled may have created the CT all the same.
            for step in (remove_files, self._cts.stop):
                undo.push_async_callback(attempt, partial(step, pod), "undo of a front's pod", pod.value.name)
            if not claimed:
                await self._cts.create(pod)
            async with self._warm.handing_over(pod):
                await asyncio.to_thread(files.take_directory if claimed else files.make_directory, pod)
            self._registry.save_pod(pod, replace(pod.value, phase=SandboxPhase.READY))
            self._teardown.watch(pod)
            undo.pop_all()

    def _reserve(self, wanted: WantedSandbox, config: SandboxConfig, *, warm: bool) -> PodEntry:
        """Store the pod as CREATING, with `warm` with a CT that waits for one, if there is one. Does not await."""
        taken = {pod.value.config.metadata for pod in self._registry.attempts(config.metadata)}
        sandbox = Sandbox(
            id=wanted.id,
            config=replace(config, metadata=with_free_attempt(config.metadata, taken)),
            created_at=time.time_ns(),
            phase=SandboxPhase.CREATING,
            # A user namespace that is not the CT's, here the front's, cannot nest in an unprivileged CT.
            privileged=True,
            user_namespace=UserNamespaceDecision(
                kind=UserNamespaceKind.NODE,
                reason=UserNamespaceReason.FRONT,
                detail=f"{wanted.front.kind.value} decides",
            ),
            front=replace(wanted.front, sandbox_id=wanted.id),
        )
        claimed = self._warm.claim(sandbox, None) if warm else None
        return claimed or self._registry.add_pod(sandbox)

    # -- limits -----------------------------------------------------------------------------------------------

    def _with_limits(self, config: SandboxConfig) -> SandboxConfig:
        """The pod with the limits of the kubelet's cgroup for it, if the front says none."""
        found = self._kubelets_limits(config)
        return config if found is None or config.resources != Resources() else replace(config, resources=found)

    def _kubelets_limits(self, config: SandboxConfig) -> Resources | None:
        group = pod_cgroup(config)
        found = limits.read(self._cgroups, group) if group else None
        if found is None:
            return None
        return Resources(
            memory_limit=found.memory or 0,
            cpu_quota=found.cpu_quota or 0,
            cpu_period=_CPU_PERIOD if found.cpu_quota else 0,
        )

    async def follow_limits(self, pod: PodEntry, own: Resources | None = None) -> None:
        """Resize the CT if the pod's limits have changed: to `own`, else to those of the kubelet's cgroup."""
        wanted = own or self._kubelets_limits(pod.value.config)
        async with pod.lock:
            if wanted is None or wanted == pod.value.config.resources or not pod.alive:
                return
            config = replace(pod.value.config, resources=wanted)
            await self._cts.resize(pod, wanted, config.overhead)
            self._registry.save_pod(pod, replace(pod.value, config=config))

    # -- the end ----------------------------------------------------------------------------------------------

    async def container_gone(self, pod: PodEntry, *, was_sandbox: bool) -> None:
        """A container of the pod was deleted: end the pod if that was its end for the front, too. Idempotent.

        Raises what stopping or destroying the CT does; then the front deletes again, or recovery does.
        """
        if was_sandbox and pod.containers:
            # The CT of the others ends; they are the front's to delete.
            await self._teardown.stop(pod.id)
            if not pod.containers:  # deleted while the CT was being stopped
                await self._remove(pod)
        elif not pod.containers and (was_sandbox or self._has_ended(pod)):
            await self._remove(pod)

    def _has_ended(self, pod: PodEntry) -> bool:
        front = pod.value.front
        if front is None or front.has_container:
            # The pod's own container was deleted before, if its CT is stopped and none is left.
            return pod.value.phase is not SandboxPhase.READY
        return not front.namespace or not Path(front.namespace).exists()

    async def sweep(self) -> None:
        """End the pods whose namespaces their front has removed: CRI-O stops a pod without telling its runtime."""
        await attempt_each(
            "end of fronts' pods",
            [
                (f"ending pod {pod.value.name}", partial(self._end, pod))
                for pod in self._registry.pods()
                if pod.value.phase in (SandboxPhase.READY, SandboxPhase.STOPPED) and self._is_left(pod)
            ],
        )

    def _is_left(self, pod: PodEntry) -> bool:
        """Whether the front has ended the pod, and no call will say so."""
        front = pod.value.front
        if front is None:
            return False
        return self._has_ended(pod) if front.namespace else front.has_container and not pod.containers

    async def _end(self, pod: PodEntry) -> None:
        # The containers' records stay until the front deletes them; it asks for their state until then.
        await (self._teardown.stop(pod.id) if pod.containers else self._remove(pod))

    async def _remove(self, pod: PodEntry) -> None:
        # First: a front does not ask again, so that a part that fails is recovery's.
        self._registry.save_pod(pod, replace(pod.value, phase=SandboxPhase.REMOVING), ending=True)
        await self._teardown.remove(pod.id)
