# SPDX-License-Identifier: Apache-2.0
"""A pod whose CT is shut down or rebooted in Proxmox: its containers are stopped, and then the CT (decision 0079).

LXC sends the CT's init a signal and waits for its end. The init passes that on through a FIFO, which is read here;
while it has no reader, the CT ends its processes itself (proxmox/template.py).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import stat
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from pvecri.linux.fds import AsyncFd
from pvecri.linux.openat2 import open_in_root
from pvecri.linux.processes import Process
from pvecri.model import SandboxId
from pvecri.pods.container.stop import ContainerStopper
from pvecri.pods.registry import PodEntry
from pvecri.proxmox.template import SHUTDOWN_PIPE
from pvecri.supervision import Supervisor, attempt

log = logging.getLogger(__name__)

GRACE_ANNOTATION = "io.kubernetes.pod.terminationGracePeriod"
"""The kubelet's, of each container: seconds."""

DEFAULT_GRACE = 30.0
"""Seconds; Kubernetes' own default."""


class Shutdowns:
    """`watch` waits for the request of one CT, that of a pod or a warm one."""

    def __init__(self, stopper: ContainerStopper, supervisor: Supervisor) -> None:
        self._stopper = stopper
        self._supervisor = supervisor
        self._watched: set[SandboxId] = set()

    def watch(self, pod: PodEntry) -> None:
        """End the pod in order once its running CT is to be shut down. Idempotent; ends with the CT."""
        if pod.id in self._watched:  # as a warm CT
            return
        self._watched.add(pod.id)
        self._supervisor.until_done("watch for a shutdown", partial(self._attend, pod), pod.id)

    async def _attend(self, pod: PodEntry) -> None:
        """Repeatable: the CT repeats its request until it has ended."""
        if pod.init is not None and (fd := await asyncio.to_thread(_open, pod.init.pid)) is not None:
            pipe = AsyncFd(fd)
            try:
                # Open until the containers have ended: without a reader the CT would go on alone.
                if await _requested(pipe, pod.init):
                    await self._end(pod)
            finally:
                pipe.close()
        self._watched.discard(pod.id)

    async def _end(self, pod: PodEntry) -> None:
        """Stop the containers, each with its grace period, and then the CT. Repeatable."""
        log.warning("CT %d of pod %s is shut down: its containers are stopped", pod.value.vmid, pod.value.name)
        stops = (
            attempt(
                partial(self._stopper.stop, container.id, grace_period(container.value.config.annotations)),
                "shutdown of pod",
                f"stopping container {container.id}",
            )
            for container in pod.containers.values()
        )
        await asyncio.gather(*stops)
        # Neither by Proxmox nor with the pod's lock: Proxmox's task for the shutdown has the CT locked and waits
        # for this, and a StopPodSandbox that has the pod's lock may wait for Proxmox.
        if pod.init is not None:
            pod.init.send(signal.SIGKILL)


def grace_period(annotations: Mapping[str, str]) -> float:
    """Seconds between a container's stop signal and SIGKILL, as its pod has it, by the container's annotations."""
    text = annotations.get(GRACE_ANNOTATION, "")
    return float(text) if text.isascii() and text.isdecimal() and len(text) < 8 else DEFAULT_GRACE


async def _requested(pipe: AsyncFd, init: Process) -> bool:
    """Wait for a request; False if the CT has ended without one."""
    async with asyncio.TaskGroup() as group:
        ended = group.create_task(init.wait())
        ended.add_done_callback(lambda _: pipe.end_when_empty())
        found = await pipe.read()
        ended.cancel()
    return bool(found) and init.alive


def _open(init: int) -> int | None:
    """The FIFO below the root of the CT's init, without following a link out of it; None if it is not there.

    It is not in CTs of earlier versions.
    """
    try:
        # O_PATH first: whoever is root in the CT may have put a device there, whose opening has effects.
        found = open_in_root(Path(f"/proc/{init}/root"), SHUTDOWN_PIPE, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if not stat.S_ISFIFO(os.fstat(found).st_mode):
            return None
        # For writing, too: a FIFO without a writer is at its end.
        return os.open(f"/proc/self/fd/{found}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    finally:
        os.close(found)
