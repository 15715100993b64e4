# SPDX-License-Identifier: Apache-2.0
"""StopPodSandbox and RemovePodSandbox, and the stop of a pod whose CT has ended by itself."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence

from msgspec.structs import replace

from pvecri.errors import NotFound, PvecriError
from pvecri.model import SandboxPhase
from pvecri.network.manager import NetworkManager
from pvecri.pods import files
from pvecri.pods.container.pause import Pauses
from pvecri.pods.container.remove import ContainerRemover
from pvecri.pods.container.stop import ContainerStopper
from pvecri.pods.hooks import Hooks
from pvecri.pods.registry import PodEntry, Registry
from pvecri.pods.sandbox.ct import SandboxCts

log = logging.getLogger(__name__)


class SandboxTeardown:
    """Stops and removes pod sandboxes. Calls for one pod wait for each other, those for different pods do not."""

    def __init__(
        self,
        registry: Registry,
        cts: SandboxCts,
        network: NetworkManager,
        stopper: ContainerStopper,
        remover: ContainerRemover,
        pauses: Pauses,
        hooks: Hooks,
    ) -> None:
        self._registry = registry
        self._cts = cts
        self._network = network
        self._stopper = stopper
        self._remover = remover
        self._pauses = pauses
        self._hooks = hooks
        self.removal_pending = asyncio.Event()
        """Set when a sandbox stays in the phase REMOVING because a part of it could not be removed."""

    # -- CRI calls --------------------------------------------------------------------------------------------

    async def stop(self, sandbox_id: str) -> None:
        """Stop a pod's containers, its network and its CT (CRI StopPodSandbox).

        Idempotent: a stopped or unknown sandbox is no error, as the CRI requires.
        """
        try:
            pod = self._registry.pod(sandbox_id)
        except NotFound:
            return
        async with pod.lock:
            await self._stop(pod)

    async def remove(self, sandbox_id: str) -> None:
        """Remove a sandbox and its containers (CRI RemovePodSandbox), stopping it first if it runs.

        Idempotent; an unknown sandbox is no error. If a part cannot be removed, the sandbox stays and the error is
        raised; the client or recovery.py tries again.
        """
        try:
            pod = self._registry.pod(sandbox_id)
        except NotFound:
            return
        try:
            await self.finish_removal(pod)
        except PvecriError:
            self.removal_pending.set()
            raise

    async def finish_removal(self, pod: PodEntry) -> None:
        """As `remove`, for a sandbox whose creation or removal the previous daemon process did not finish."""
        async with pod.lock:
            await self._stop(pod)
            self._registry.save_pod(pod, replace(pod.value, phase=SandboxPhase.REMOVING))
            for container in list(pod.containers.values()):
                await self._remover.remove_entry(container)
            await _run_all(self._cts.destroy(pod), asyncio.to_thread(files.remove_files, pod))
            await self._hooks.remove_pod(pod)
            self.drop(pod)

    # -- other reasons to stop --------------------------------------------------------------------------------

    async def stop_for_missing_ids(self, pod: PodEntry, ids: Sequence[int]) -> None:
        """Stop a pod whose user namespace lacks `ids`: that of its next sandbox has them (decision 0066)."""
        async with pod.lock:
            missing = tuple(sorted({*pod.value.missing_ids, *ids}))
            self._registry.save_pod(pod, replace(pod.value, missing_ids=missing))
            await self._stop(pod)

    def watch(self, pod: PodEntry) -> None:
        """Stop the pod when its CT ends without us: by a crash of its init or by an action in Proxmox."""
        pod.watcher = asyncio.create_task(self._watch(pod), name=f"watch CT {pod.value.vmid}")

    async def _watch(self, pod: PodEntry) -> None:
        assert pod.init is not None
        await pod.init.wait()
        async with pod.lock:
            if pod.value.phase is SandboxPhase.READY:
                log.warning("CT %d of pod %s ended", pod.value.vmid, pod.value.name)
                self._registry.save_pod(pod, replace(pod.value, phase=SandboxPhase.STOPPED))
                try:
                    await self._stop(pod, force=True)
                except PvecriError as error:
                    log.warning("cleaning up after CT %d: %s", pod.value.vmid, error)

    # -- steps, also undone by RunPodSandbox ------------------------------------------------------------------

    async def _stop(self, pod: PodEntry, *, force: bool = False) -> None:
        # A STOPPED pod may still have a network or a CT: an earlier attempt may have failed half-way.
        if not (force or pod.value.phase is SandboxPhase.READY or pod.value.networked or pod.alive):
            return
        await self._stopper.kill_all(pod)
        await self._hooks.stop_pod(pod)
        # The network namespace is pinned, so CNI DEL does not need a running CT.
        await _run_all(self.detach_network(pod), self._cts.stop(pod))
        await self._stopper.wait_released(pod)
        self._pauses.forget(pod)
        await asyncio.to_thread(files.unpin_namespaces, pod)
        self._registry.save_pod(pod, replace(pod.value, phase=SandboxPhase.STOPPED))

    async def detach_network(self, pod: PodEntry) -> None:
        """Run CNI DEL. Idempotent."""
        if not pod.value.networked:
            return
        netns = pod.namespace("net")
        await self._network.detach(pod.id, netns if netns.exists() else None, pod.value.config)
        self._registry.save_pod(pod, replace(pod.value, networked=False))

    def drop(self, pod: PodEntry) -> None:
        """Delete the sandbox from the registry; while its CT or its network is left, keep it as REMOVING."""
        if pod.watcher is not None:
            pod.watcher.cancel()
        if pod.value.vmid or pod.value.networked:
            self._registry.save_pod(pod, replace(pod.value, phase=SandboxPhase.REMOVING))
            self.removal_pending.set()
            return
        self._registry.drop_pod(pod)


async def _run_all(*parts: Awaitable[None]) -> None:
    """Await all to their ends, then raise the first error."""
    for outcome in await asyncio.gather(*parts, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome
