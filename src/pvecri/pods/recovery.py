# SPDX-License-Identifier: Apache-2.0
"""After a start: bring the store, the kernel and Proxmox to one truth.

The kernel knows which processes run, Proxmox which CTs exist, the store what was meant. What runs is adopted
(conmon and the CT outlive the daemon), what ended meanwhile is recorded, what was half made or half removed is
removed. The part that needs Proxmox waits until it can be reached and does not hold up the rest.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial

from msgspec.structs import replace

from pvecri import metrics
from pvecri.errors import PvecriError
from pvecri.images.manager import ImageManager
from pvecri.linux import mounts
from pvecri.model import ContainerState, SandboxPhase, Vmid
from pvecri.network.manager import NetworkManager
from pvecri.pods.container.exit import ContainerExits
from pvecri.pods.container.pause import pause_id
from pvecri.pods.registry import PodEntry, Registry
from pvecri.pods.sandbox.ct import SandboxCts
from pvecri.pods.sandbox.stop import SandboxTeardown
from pvecri.proxmox.api import ProxmoxApi

log = logging.getLogger(__name__)

RETRY_FIRST = 1.0
RETRY_MAX = 60.0
"""Seconds between tries of a removal that failed."""


class Recovery:
    """`adopt` once at the start, then `run` beside the daemon to remove what could not be removed at once."""

    def __init__(
        self,
        registry: Registry,
        teardown: SandboxTeardown,
        exits: ContainerExits,
        cts: SandboxCts,
        proxmox: ProxmoxApi,
        network: NetworkManager,
        images: ImageManager,
    ) -> None:
        self._registry = registry
        self._teardown = teardown
        self._exits = exits
        self._cts = cts
        self._proxmox = proxmox
        self._network = network
        self._images = images

    async def adopt(self) -> None:
        """Take over what the store says runs. Needs no Proxmox."""
        self._registry.load()
        for pod in self._registry.pods():
            self._adopt_pod(pod)
        await self._remove_strays()

    def _adopt_pod(self, pod: PodEntry) -> None:
        pod.init = self._cts.find_init(pod) if pod.value.vmid else None
        for container in pod.containers.values():
            if container.value.state is ContainerState.RUNNING:
                self._exits.adopt(pod, container)
            elif container.value.state is ContainerState.CREATED and not container.bundle.spec.exists():
                self._exits.record_lost(container)
            elif container.value.state is ContainerState.CREATED and container.bundle.conmon_log.exists():
                self._exits.abort_start(pod, container)
            elif container.value.state is ContainerState.EXITED:
                self._exits.release_again(pod, container)
        if pod.value.phase is SandboxPhase.CREATING:
            self._registry.save_pod(pod, replace(pod.value, phase=SandboxPhase.REMOVING))
        elif pod.value.phase is SandboxPhase.READY and pod.init is not None:
            self._teardown.watch(pod)
        elif pod.value.phase is SandboxPhase.READY:
            log.warning("CT %d of pod %s does not run any more", pod.value.vmid, pod.value.name)
            self._registry.save_pod(pod, replace(pod.value, phase=SandboxPhase.STOPPED))

    async def _remove_strays(self) -> None:
        """Directories and root filesystems that no row tells of: a crash came between the two."""
        pods = {str(pod.id) for pod in self._registry.pods()}
        containers = {str(container.id) for container in self._registry.containers()}
        runtime = containers | {pause_id(pod.id) for pod in self._registry.pods()}
        for kind, known in (("pods", pods), ("containers", containers), ("oci", runtime)):
            for directory in (self._registry.directory / kind).iterdir():
                if directory.name not in known:
                    await asyncio.to_thread(mounts.remove_tree, directory)
        for exit_file in (self._registry.directory / "exits").iterdir():
            if exit_file.name not in containers:
                exit_file.unlink()
        for name in self._images.rootfs_ids():
            if name.partition(".")[0] not in containers:  # an image volume's has the mount's index behind the id
                await self._images.remove_rootfs(name)

    async def run(self) -> None:
        """Clean up now, and whenever a failed call has left something to remove; until cancelled."""
        while True:
            self._teardown.removal_pending.clear()
            await self._clean_up()
            await self._teardown.removal_pending.wait()

    async def _clean_up(self) -> None:
        """Try again and again until nothing is left to clean up."""
        pause = RETRY_FIRST
        while not await self._clean_up_once():
            log.warning("trying to clean up again in %g s", pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, RETRY_MAX)

    async def _clean_up_once(self) -> bool:
        """Finish removals, then see to CTs and attachments without a pod; whether all of it succeeded.

        What fails does not keep the rest from its turn.
        """
        removals: list[Callable[[], Awaitable[None]]] = [
            partial(self._teardown.finish_removal, pod)
            for pod in self._registry.pods()
            if pod.value.phase is SandboxPhase.REMOVING
        ]
        failures = 0
        for step in (self._cts.prepare, *removals, self._destroy_orphans, self._release_attachments):
            try:
                await step()
            except PvecriError as error:
                log.warning("cleaning up: %s", error)
                failures += 1
        metrics.CLEANUP_FAILURES.inc(failures)
        metrics.CLEANUP_PENDING.set(failures)
        return failures == 0

    async def _destroy_orphans(self) -> None:
        async for vmid in self._cts.orphans():
            log.warning("CT %d was made here and no pod has it: destroying it", vmid)
            await self._proxmox.stop_ct(Vmid(vmid))
            await self._proxmox.destroy_ct(Vmid(vmid))

    async def _release_attachments(self) -> None:
        await self._network.collect_garbage({pod.id for pod in self._registry.pods()})
