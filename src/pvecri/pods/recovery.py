# SPDX-License-Identifier: Apache-2.0
"""Reconciles the store with the kernel and with Proxmox after a start of the daemon.

The kernel knows which processes run, Proxmox which CTs exist, the store what was intended. What runs is adopted
(conmon and the CT outlive the daemon), what exited meanwhile is recorded, what was half created or half removed is
removed. What needs Proxmox runs in the background and is retried until Proxmox answers. CTs without a row are only
reported (foreign_cts.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from pvecri.images.manager import ImageManager
from pvecri.linux import cgroup_mirror, mounts
from pvecri.model import ContainerState, SandboxId, SandboxPhase
from pvecri.network.manager import NetworkManager
from pvecri.observability import metrics
from pvecri.pods.container.exit import ContainerExits
from pvecri.pods.container.pause import pause_id
from pvecri.pods.registry import ContainerEntry, PodEntry, Registry
from pvecri.pods.sandbox.ct import SandboxCts
from pvecri.pods.sandbox.stop import SandboxTeardown
from pvecri.supervision import Incomplete, Step, attempt, attempt_each

log = logging.getLogger(__name__)

WORK = "recovery"


class Recovery:
    """Call `adopt` once before the CRI is served, and `attend` right after.

    `clean_up` then runs in the background until nothing is left to remove.
    """

    def __init__(
        self,
        registry: Registry,
        teardown: SandboxTeardown,
        exits: ContainerExits,
        cts: SandboxCts,
        network: NetworkManager,
        images: ImageManager,
        adopt_of_front: Callable[[PodEntry, ContainerEntry], Awaitable[None]],
        adopt_warm: Callable[[PodEntry], None],
    ) -> None:
        self._registry = registry
        self._teardown = teardown
        self._exits = exits
        self._cts = cts
        self._network = network
        self._images = images
        self._adopt_of_front = adopt_of_front
        self._adopt_warm = adopt_warm
        self._of_start: dict[str, Step] = {}
        """Steps of `adopt` that have not succeeded yet, by what they do."""
        self._unattended: list[Callable[[], None]] = []
        """What `adopt` leaves to `attend`."""
        self._lost_pods: set[Path] = set()
        """Directories of pods that have no row, until they are removed."""

    async def adopt(self) -> None:
        """Find out what runs of what the store has: what clients are answered with. Does not need Proxmox.

        A step that fails does not stop the others; `clean_up` retries it. What runs costs some reads of /proc and
        of its cgroups, no program and no thread: the first answer waits for all pods.
        """
        self._registry.load()
        self._of_start = {
            f"adopting pod {pod.value.name} ({pod.id})": partial(self._adopt_pod, pod)
            for pod in self._registry.pods()
        }
        self._of_start |= {
            f"adopting warm CT {entry.value.vmid} ({entry.id})": partial(self._adopt_warm_ct, entry)
            for entry in self._registry.warm()
        }
        self._of_start |= self._unrecorded()
        for action, step in self._steps_of_start():
            await attempt(step, WORK, action)

    async def attend(self) -> None:
        """Begin what no answer waits for: releases, watches for shutdowns, the kubelet's limits. Repeatable."""
        while self._unattended:
            self._unattended.pop()()
            await asyncio.sleep(0)  # calls are answered in between
        self._cts.bound_all()

    def _steps_of_start(self) -> list[tuple[str, Step]]:
        return [(action, partial(self._at_start, action)) for action in self._of_start]

    async def _at_start(self, action: str) -> None:
        await self._of_start[action]()
        del self._of_start[action]

    async def _adopt_warm_ct(self, entry: PodEntry) -> None:
        self._adopt_warm(entry)

    async def _adopt_pod(self, pod: PodEntry) -> None:
        """Adopt a pod. Idempotent."""
        if pod.init is None and pod.value.vmid:
            pod.init = self._cts.find_init(pod)
        for container in list(pod.containers.values()):
            if container.watcher is not None:
                continue
            if container.value.front is not None:
                await self._adopt_of_front(pod, container)
                continue
            if container.value.state is ContainerState.RUNNING:
                self._exits.adopt(pod, container)
            # The bundle is in /run, a tmpfs: it is lost with a reboot of the node.
            elif container.value.state is ContainerState.CREATED and not container.bundle.spec.exists():
                self._exits.record_lost(container)
            # conmon was started, but StartContainer did not succeed.
            elif container.value.state is ContainerState.CREATED and container.bundle.conmon_log.exists():
                self._exits.abort_start(pod, container)
                self._unattended.append(partial(self._exits.release_again, pod, container))
            elif container.value.state is ContainerState.EXITED:
                self._unattended.append(partial(self._exits.release_again, pod, container))
        if pod.value.phase is SandboxPhase.CREATING or _ended_with_daemon(pod):
            # No client knows its id: RunPodSandbox has not returned.
            self._registry.save_pod(pod, replace(pod.value, phase=SandboxPhase.REMOVING), ending=True)
        elif pod.value.phase is SandboxPhase.READY and pod.init is not None:
            if pod.watcher is None:
                self._teardown.watch_end(pod)
                self._unattended.append(partial(self._attend_pod, pod))
        elif pod.value.phase is SandboxPhase.READY:
            log.warning("CT %d of pod %s has ended", pod.value.vmid, pod.value.name)
            self._registry.save_pod(pod, replace(pod.value, phase=SandboxPhase.STOPPED), ending=True)

    def _attend_pod(self, pod: PodEntry) -> None:
        if pod.alive:  # it may have been stopped meanwhile
            self._cts.mirror_limits(pod)  # the kubelet may have changed them
            self._teardown.shutdowns.watch(pod)

    def _unrecorded(self) -> dict[str, Step]:
        """The removal of each directory and root filesystem without a row: a crash of the node can lose rows.

        Searched only at the start: what is created later may exist before its row.
        """
        removals: dict[str, Step] = {}
        pods = {str(entry.id) for entry in self._registry.cts()}
        containers = {str(container.id) for container in self._registry.containers()}
        runtime = containers | {pause_id(pod.id) for pod in self._registry.pods()}
        vmids = self._cts.vmid_range
        remove_mirrors = partial(cgroup_mirror.remove_others, vmids.first, vmids.last, containers)
        removals["unmounting cgroups of containers"] = partial(asyncio.to_thread, remove_mirrors)
        directory = self._registry.directory / "pods"
        # With Proxmox, later: CNI's DEL needs the network namespace that is pinned there.
        self._lost_pods = {each for each in directory.iterdir() if each.name not in pods}
        for kind, known in (("containers", containers), ("oci", runtime)):
            for directory in (self._registry.directory / kind).iterdir():
                if directory.name not in known:
                    removals[f"removing {directory}"] = partial(_remove_directory, directory)
        for exit_file in (self._registry.directory / "exits").iterdir():
            if exit_file.name not in containers:
                removals[f"removing {exit_file}"] = partial(_remove_file, exit_file)
        for name in self._images.rootfs_ids():
            if name.partition(".")[0] not in containers:  # image volumes: bundle.image_volume_name
                removals[f"removing root filesystem {name}"] = partial(self._images.remove_rootfs, name)
        return removals

    async def clean_up(self) -> None:
        """Retry what `adopt` could not do, finish removals, and release CNI attachments without a pod.

        A step that fails does not stop the others. Incomplete if one failed: call again.
        """
        # Before the pods are listed: a removal that fails from here on sets it again.
        self._teardown.removal_pending.clear()
        removals: list[tuple[str, Step]] = [
            (f"removing pod {pod.value.name} ({pod.id})", partial(self._teardown.finish_removal, pod))
            for pod in [*self._registry.pods(), *self._registry.warm()]
            if pod.value.phase is SandboxPhase.REMOVING
        ]
        steps: list[tuple[str, Step]] = [
            *self._steps_of_start(),
            ("attending to what was adopted", self.attend),
            # Ahead of the first pod, which would wait for the upload.
            ("preparing the sandbox template", self._cts.prepare),
            *removals,
            ("releasing CNI attachments that belong to no pod", self._release_attachments),
            *((f"removing {each}", partial(self._remove_lost_pod, each)) for each in sorted(self._lost_pods)),
        ]
        failures = 0
        try:
            await attempt_each(WORK, steps)
        except Incomplete as error:
            failures = error.failures
            raise
        finally:
            metrics.CLEANUP_FAILURES.inc(failures)
            metrics.CLEANUP_PENDING.set(failures)

    async def _remove_lost_pod(self, directory: Path) -> None:
        await self._network.release(SandboxId(directory.name))  # no pod without a row is detached otherwise
        await _remove_directory(directory)
        self._lost_pods.discard(directory)

    async def _release_attachments(self) -> None:
        await self._network.collect_garbage({pod.id for pod in self._registry.pods()})


def _ended_with_daemon(pod: PodEntry) -> bool:
    """Whether a front's pod is none any more: after a reboot of the node, or if its creation was cut off."""
    front = pod.value.front
    if front is None:
        return False
    # A front knows nothing of its containers after a reboot, as with runc, whose state is in /run, too.
    rebooted = pod.value.ct_made and not pod.directory.exists()
    return rebooted or (not pod.containers and (front.has_container or not front.namespace))


async def _remove_directory(directory: Path) -> None:
    await asyncio.to_thread(mounts.remove_tree, directory)


async def _remove_file(file: Path) -> None:
    file.unlink(missing_ok=True)
