# SPDX-License-Identifier: Apache-2.0
"""StopContainer: the stop signal, then SIGKILL. No Proxmox call."""

from __future__ import annotations

import asyncio
import logging
import signal
from functools import partial

from pvecri.errors import DeadlineExceeded, NotFound
from pvecri.linux import signals
from pvecri.linux.cgroups import Cgroups
from pvecri.model import ContainerState
from pvecri.pods.registry import ContainerEntry, PodEntry, Registry
from pvecri.supervision import attempt

log = logging.getLogger(__name__)

KILL_TIMEOUT = 10.0
"""Seconds after SIGKILL within which a container must have exited and released its resources."""


class ContainerStopper:
    """Ends containers; any number at once."""

    def __init__(self, registry: Registry, cgroups: Cgroups) -> None:
        self._registry = registry
        self._cgroups = cgroups

    async def stop(self, container_id: str, timeout: float) -> None:
        """Send a container its stop signal, and SIGKILL after `timeout` seconds (CRI StopContainer).

        Idempotent: a container that has exited or is unknown is no error. Concurrent calls have a timeout each.
        """
        try:
            container = self._registry.container(container_id)
        except NotFound:
            return
        async with container.lock:  # waits for a start that is under way
            pass
        if timeout > 0 and container.process is not None:
            # By pidfd, not by the OCI runtime's `kill`: no program to start, and no PID that is reused by now.
            container.process.send(signal_number(container.value.stop_signal))
            if await _released(container, timeout):
                return
        await self.kill(container)

    async def kill(self, container: ContainerEntry) -> None:
        """Kill a container's first process and wait until its resources are released. Idempotent.

        DeadlineExceeded after `KILL_TIMEOUT`: a process in uninterruptible sleep does not die of SIGKILL.
        A container that is frozen, by itself or with its CT, is thawed, the CT with it.
        """
        if container.value.state is not ContainerState.EXITED and container.process is not None:
            # If it is the first process of a PID namespace, the kernel kills all others with it.
            container.process.send(signal.SIGKILL)
            await self._thaw(container)
        if container.watcher is None:  # it was never started
            return
        if not await _released(container, KILL_TIMEOUT):
            raise DeadlineExceeded(f"container {container.id} did not end within {KILL_TIMEOUT:g} s of SIGKILL")

    async def _thaw(self, container: ContainerEntry) -> None:
        """Let a container, to which SIGKILL was sent, die: in version 1 a frozen process does not.

        Nor does a frozen conmon, in either version, notice the end: hence the CT, if that is frozen.
        """
        pod = self._registry.pod_of(container)
        group = pod.cgroups.container(container.id)
        self._cgroups.kill(group)  # those outside the first one's PID namespace would run on
        try:
            # Not while exposure.py has the pod's containers frozen.
            async with asyncio.timeout(KILL_TIMEOUT), pod.pids_lock:
                self._cgroups.thaw(pod.cgroups.ct, below=False)
                self._cgroups.thaw(pod.cgroups.monitors, below=True)
                self._cgroups.thaw(group, below=True)
        except TimeoutError:
            log.warning("container %s was not thawed: another one of its pod is being created", container.id)

    async def kill_all(self, pod: PodEntry) -> None:
        """Kill all containers of a pod. Idempotent; one that does not exit ends with the CT."""
        kills = (
            attempt(partial(self.kill, container), "stop of pod", f"killing container {container.id}")
            for container in pod.containers.values()
        )
        await asyncio.gather(*kills)
        self._cgroups.thaw(pod.cgroups.ct, below=True)  # its init is killed next, and may be frozen as well

    async def wait_released(self, pod: PodEntry) -> None:
        """Wait until the exits of all containers of a pod, whose CT has stopped, are recorded."""
        for container in pod.containers.values():
            if container.watcher is not None:
                await _released(container, KILL_TIMEOUT)


async def _released(container: ContainerEntry, timeout: float) -> bool:
    """Whether the container's resources are released within `timeout` seconds."""
    try:
        async with asyncio.timeout(timeout):
            await container.released.wait()
    except TimeoutError:
        return False
    return True


def signal_number(name: str) -> int:
    """The number of an image's or request's stop signal; SIGTERM if there is none of the name."""
    if found := signals.number(name):  # not 0, which is none
        return found
    log.warning("unknown stop signal %r, using SIGTERM", name)
    return int(signal.SIGTERM)
