# SPDX-License-Identifier: Apache-2.0
"""Keeps the pods' mounts out of the mount namespaces of monitors, those of conmon and of LXC.

Each monitor has a copy of all mounts of the node: conmon so that the OCI runtime has a /proc of the CT's PID
namespace, LXC's because Proxmox sets lxc.monitor.unshare. A pod has eight mounts, and each appears in, and has to
disappear from, every copy: with n pods and their monitors 16 n² mounts of 384 bytes, 380 MiB with 250 pods. A
monitor needs none of them once what it monitors runs, so they are unmounted in its namespace.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

from pvecri.linux import mounts, namespaces, processes
from pvecri.linux.processes import Process
from pvecri.supervision import Supervisor

log = logging.getLogger(__name__)

MONITORS = ("conmon", "lxc-start")
"""/proc/PID/comm."""


class MonitorMounts:
    """`drop` unmounts, in the namespace of a process's monitor, the directories below which pods have mounts."""

    def __init__(self, directories: Iterable[Path], supervisor: Supervisor) -> None:
        """`directories` are mount points; only those are unmounted that cover themselves (`ensure_shared`).

        There a monitor finds its own files at the same paths afterwards.
        """
        self._directories = tuple(each for each in directories if mounts.is_bound_on_itself(each))
        self._supervisor = supervisor

    def drop(self, child: Process) -> None:
        """Unmount them for the monitor that is the parent of `child`, in the background. Idempotent.

        Nothing depends on it, and it is not tried again: what stays costs memory until the monitor ends.
        """
        step = partial(asyncio.to_thread, self._drop, child)
        self._supervisor.once("mounts of monitors", step, f"process {child.pid}")

    def _drop(self, child: Process) -> None:
        monitor = processes.parent(child.pid)
        if processes.command_name(monitor) not in MONITORS:
            return
        try:
            namespace = os.open(f"/proc/{monitor}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # it has ended
            return
        try:
            # Afterwards: the PIDs were not another process's when the namespace was opened.
            if child.alive and processes.parent(child.pid) == monitor and not _is_nodes(namespace):
                namespaces.run_in_mount_namespace(namespace, partial(_unmount, self._directories))
        finally:
            os.close(namespace)


def _is_nodes(namespace: int) -> bool:
    """Whether a mount namespace is the daemon's own or that of the node's init."""
    wanted = os.fstat(namespace)
    if os.path.samestat(wanted, Path("/proc/self/ns/mnt").stat()):
        return True
    with suppress(PermissionError):  # without CAP_SYS_PTRACE
        return os.path.samestat(wanted, Path("/proc/1/ns/mnt").stat())
    return False


def _unmount(directories: Iterable[Path]) -> None:
    present = [each for each in directories if mounts.is_mountpoint(each)]
    if not present:
        return
    # First: conmon's mounts are peers of the node's, and what is unmounted here would be unmounted there, too.
    # Mounts of the node still come and go here.
    mounts.make_slaves(Path("/"))
    for each in present:
        mounts.umount(each, detach=True)
