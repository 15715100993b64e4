# SPDX-License-Identifier: Apache-2.0
"""The end of a CT's processes, without Proxmox: SIGKILL for its init, then LXC's monitor does the rest."""

from __future__ import annotations

import asyncio
import logging
import signal

from pvecri.errors import DeadlineExceeded
from pvecri.linux import processes
from pvecri.linux.cgroups import Cgroups
from pvecri.linux.processes import Process
from pvecri.pods.registry import PodEntry

log = logging.getLogger(__name__)

MONITOR_NAME = "lxc-start"
"""/proc/PID/comm of a CT's monitor, the parent of its init."""

KILL_TIMEOUT = 10.0
"""Seconds after SIGKILL within which a CT's init must have ended, and with it its whole PID namespace."""

MONITOR_TIMEOUT = 60.0
"""Seconds for LXC's monitor to remove cgroups and interfaces and to run Proxmox's hook, after the init's end."""


async def kill(pod: PodEntry, cgroups: Cgroups) -> None:
    """Kill the init of the pod's CT, if it runs, and wait for its end; the kernel kills its PID namespace with it.

    Idempotent. Sets `pod.init` to None and `pod.monitor`. DeadlineExceeded after `KILL_TIMEOUT`: a process in
    uninterruptible sleep does not die of SIGKILL; then `pod.init` stays.
    """
    init = pod.init
    if init is None:
        return
    if pod.monitor is None:
        pod.monitor = _monitor_of(init)
    init.send(signal.SIGKILL)
    try:
        async with asyncio.timeout(KILL_TIMEOUT):
            await init.wait()
    except TimeoutError as error:
        message = f"CT {pod.value.vmid} of pod {pod.value.name} did not end within {KILL_TIMEOUT:g} s of SIGKILL"
        raise DeadlineExceeded(message) from error
    # Containers in the node's PID namespace do not die with the CT's init.
    cgroups.kill(pod.cgroups.ct)
    init.close()
    pod.init = None


def kill_containers(pod: PodEntry, cgroups: Cgroups) -> None:
    """Kill what an ended CT has left of its containers: processes in the node's PID namespace. Idempotent."""
    if pod.init is not None:
        pod.init.close()
        pod.init = None
    if not pod.value.vmid:
        return
    groups = (pod.cgroups.container(container) for container in pod.containers)
    for group in (pod.cgroups.monitors, pod.cgroups.pause, *groups):
        cgroups.kill(group)


async def wait_for_monitor(pod: PodEntry) -> None:
    """Wait until LXC's monitor of a CT that `kill` has ended is done with it. Idempotent.

    Until then Proxmox shows the CT as running, and its volumes may be mounted. Returns after `MONITOR_TIMEOUT` in
    any case: Proxmox then refuses what it cannot do.
    """
    if pod.monitor is None:
        return
    try:
        async with asyncio.timeout(MONITOR_TIMEOUT):
            await pod.monitor.wait()
    except TimeoutError:
        log.warning("the monitor of CT %d still runs: process %d", pod.value.vmid, pod.monitor.pid)
    pod.monitor.close()
    pod.monitor = None


def _monitor_of(init: Process) -> Process | None:
    parent = int(processes.status(init.pid).get("PPid", "0"))
    if processes.command_name(parent) != MONITOR_NAME:
        return None
    try:
        return Process(parent)
    except ProcessLookupError:
        return None
