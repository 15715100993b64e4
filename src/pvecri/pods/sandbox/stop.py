# SPDX-License-Identifier: Apache-2.0
"""StopPodSandbox and RemovePodSandbox, and the stop of a pod whose CT has ended by itself."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial

from msgspec.structs import replace

from pvecri.errors import InternalError, NotFound
from pvecri.model import SandboxPhase
from pvecri.network.manager import NetworkManager
from pvecri.pods import files
from pvecri.pods.container.pause import Pauses
from pvecri.pods.container.remove import ContainerRemover
from pvecri.pods.container.stop import ContainerStopper
from pvecri.pods.hooks import Hooks
from pvecri.pods.registry import PodEntry, Registry
from pvecri.pods.sandbox.ct import SandboxCts
from pvecri.pods.sandbox.ct_removals import CtRemovals
from pvecri.pods.sandbox.shutdown import Shutdowns
from pvecri.supervision import Supervisor, all_to_end, attempt

log = logging.getLogger(__name__)


class SandboxTeardown:
    """Stops and removes pod sandboxes. Calls for one pod wait for each other, those for different pods do not."""

    def __init__(
        self,
        registry: Registry,
        cts: SandboxCts,
        removals: CtRemovals,
        network: NetworkManager,
        stopper: ContainerStopper,
        remover: ContainerRemover,
        pauses: Pauses,
        hooks: Hooks,
        supervisor: Supervisor,
    ) -> None:
        self._registry = registry
        self._cts = cts
        self._removals = removals
        self._network = network
        self._stopper = stopper
        self._remover = remover
        self._pauses = pauses
        self._hooks = hooks
        self._supervisor = supervisor
        self.shutdowns = Shutdowns(stopper, supervisor)
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

        Proxmox destroys the CT afterwards (ct_removals.py). Idempotent; an unknown sandbox is no error. If another
        part cannot be removed, the sandbox stays and the error is raised; the client or recovery.py tries again.
        """
        try:
            pod = self._registry.pod(sandbox_id)
        except NotFound:
            return
        try:
            await self.finish_removal(pod)
        except BaseException:  # a fault leaves as much behind as an answer, and so does a client that gives up
            self.removal_pending.set()
            raise

    async def finish_removal(self, pod: PodEntry) -> None:
        """As `remove`, for a sandbox whose creation or removal the previous daemon process did not finish.

        A warm CT is destroyed when this returns.
        """
        async with pod.lock:
            if pod.value.removed:  # another call was faster
                return
            await self._stop(pod)
            self._registry.save_pod(pod, replace(pod.value, phase=SandboxPhase.REMOVING), ending=True)
            for container in list(pod.containers.values()):
                await self._remover.remove_entry(container)
            await remove_files(pod)
            if pod.value.warm is not None:
                await self._cts.destroy(pod)
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
        """Stop the pod when its CT ends without us, and end it in order when its CT is shut down."""
        self.watch_end(pod)
        self.shutdowns.watch(pod)

    def watch_end(self, pod: PodEntry) -> None:
        """Stop the pod when its CT ends without us: by a crash of its init or by an action in Proxmox."""
        pod.watcher = self._supervisor.until_done("watch of CT", partial(self._watch, pod), pod.id)

    async def _watch(self, pod: PodEntry) -> None:
        """Repeatable."""
        if pod.init is not None:
            await pod.init.wait()
        async with pod.lock:
            if pod.value.phase is SandboxPhase.READY:
                log.warning("CT %d of pod %s ended", pod.value.vmid, pod.value.name)
                self._registry.save_pod(pod, replace(pod.value, phase=SandboxPhase.STOPPED), ending=True)
                # Not retried here: for the client the pod has ended, so it stops and removes it.
                action = f"cleaning up after CT {pod.value.vmid}"
                # `force`, because a STOPPED pod without network and process looks as if nothing were left.
                await attempt(partial(self._stop, pod, force=True), "stop of pod", action)

    # -- steps, also undone by RunPodSandbox ------------------------------------------------------------------

    async def _stop(self, pod: PodEntry, *, force: bool = False) -> None:
        # A STOPPED pod may still have a network or a CT: an earlier attempt may have failed half-way.
        if not (force or pod.value.phase is SandboxPhase.READY or pod.value.networked or pod.alive):
            return
        # Without grace: StopPodSandbox terminates forcibly what still runs (cri.proto).
        await self._stopper.kill_all(pod)
        await attempt(partial(self._hooks.stop_pod, pod), "stop of pod", f"notifying NRI plugins of {pod.id}")
        # The network namespace is pinned, so CNI DEL does not need a running CT.
        await all_to_end("stop of pod", partial(self.detach_network, pod), partial(self._cts.stop, pod))
        await self._stopper.wait_released(pod)
        # After DEL and the CT's end: plugins and the OCI runtime enter the namespaces by their pins.
        self._pauses.forget(pod)
        await asyncio.to_thread(files.unpin_namespaces, pod)
        self._registry.save_pod(pod, replace(pod.value, phase=SandboxPhase.STOPPED), ending=True)

    async def detach_network(self, pod: PodEntry) -> None:
        """Run CNI DEL. Idempotent."""
        if not pod.value.networked:
            return
        netns = pod.namespace("net")
        await self._network.detach(pod.id, netns if netns.exists() else None, pod.value.config)
        self._registry.save_pod(pod, replace(pod.value, networked=False), ending=True)

    def drop(self, pod: PodEntry) -> None:
        """Delete the sandbox from the registry; while its network or files are left, keep it as REMOVING.

        A CT that is left is destroyed in the background.
        """
        if pod.watcher is not None:
            pod.watcher.cancel()
        left = pod.value.networked or pod.directory.exists() or pod.alive
        if pod.value.vmid and pod.value.warm is None and not left:
            self._removals.add(pod)
        elif pod.value.vmid or left:
            self._registry.save_pod(pod, replace(pod.value, phase=SandboxPhase.REMOVING), ending=True)
            self.removal_pending.set()
        else:
            self._registry.drop_pod(pod)


async def remove_files(pod: PodEntry) -> None:
    """Remove the pod's directory in the run directory, with its mounts and pinned namespaces. Idempotent.

    OSError (EBUSY) for a mount that stays, InternalError for another reason for which something is left.
    """
    await asyncio.to_thread(files.remove_files, pod)
    if pod.directory.exists():
        raise InternalError(f"{pod.directory} cannot be removed")
