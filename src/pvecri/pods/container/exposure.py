# SPDX-License-Identifier: Apache-2.0
"""Freezes containers: those that share a PID namespace while another one is created in it, and one that is packed.

Until it calls pivot_root(2), the OCI runtime's init process has the node's root directory and mounts. A process
that sees it in /proc and may ptrace it reaches the node through `/proc/PID/root`. A process in another user
namespace may not: the init process still belongs to the node's. In the node's user namespace a container with
CAP_SYS_PTRACE may, so the others are frozen meanwhile, some tens of milliseconds (decision 0064). Processes of
`exec` enter the container's root before they enter its PID namespace.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import count

from pvecri.concurrency import finish
from pvecri.errors import DeadlineExceeded
from pvecri.linux.cgroups import Cgroups
from pvecri.model import ContainerState, NamespaceMode, UserNamespaceKind
from pvecri.pods.registry import ContainerEntry, PodEntry
from pvecri.supervision import report

FREEZE_TIMEOUT = 10.0
"""Seconds within which all processes of a container must be frozen."""
FREEZE_POLL = 0.001
POLLS_TO_REFREEZE = 50
POLLS_TO_THAW = 500


def exposes(pod: PodEntry) -> bool:
    """Whether containers that share a PID namespace could ptrace the init process of a new one.

    False also for a privileged pod and for one in the node's PID namespace: they have access to the node anyway.
    """
    security = pod.value.config.security
    node_users = pod.value.user_namespace.kind is UserNamespaceKind.NODE
    return node_users and not security.privileged and security.namespaces.pid is not NamespaceMode.NODE


@asynccontextmanager
async def hidden(pod: PodEntry, container: ContainerEntry, cgroups: Cgroups) -> AsyncIterator[None]:
    """Freeze the pod's other containers for the context's duration, if `container` is exposed to them.

    DeadlineExceeded after `FREEZE_TIMEOUT`. All are thawed at the end in any case.
    """
    shares = container.value.config.security.namespaces.pid in (NamespaceMode.POD, NamespaceMode.TARGET)
    if not (shares and exposes(pod)):
        yield
        return
    async with pod.pids_lock:
        others = [
            pod.cgroups.container(each.id)
            for each in pod.containers.values()
            if _runs(each) and each is not container
        ]
        try:
            await _freeze(cgroups, others, "the other containers of the pod")
            yield
        finally:
            for group in others:
                thaw(cgroups, group)


def thaw(cgroups: Cgroups, group: str) -> None:
    """Thaw a cgroup. Idempotent; a cgroup that does not exist is no error."""
    try:
        cgroups.freeze(group, frozen=False)
    except OSError as error:
        # ENODEV: the cgroup was removed while its file was open.
        if error.errno not in (errno.ENOENT, errno.ENODEV):  # the others must still be thawed
            report(error, "thaw of container", f"thawing {group}")


@asynccontextmanager
async def frozen(pod: PodEntry, container: ContainerEntry, cgroups: Cgroups) -> AsyncIterator[None]:
    """Freeze a container for the context's duration, as far as it goes: a stop thaws it, and so does `hidden`.

    DeadlineExceeded after `FREEZE_TIMEOUT`. One that is frozen already stays so.
    """
    group = pod.cgroups.container(container.id)
    if cgroups.is_frozen(group):
        yield
        return
    container.bundle.frozen_file.touch()
    try:
        await _freeze(cgroups, [group], f"container {container.id}")
        yield
    finally:
        await finish(_thaw_unless_hidden(pod, container, cgroups))


async def _thaw_unless_hidden(pod: PodEntry, container: ContainerEntry, cgroups: Cgroups) -> None:
    async with pod.pids_lock:
        thaw(cgroups, pod.cgroups.container(container.id))
    container.bundle.frozen_file.unlink(missing_ok=True)


def thaw_after_crash(pod: PodEntry, container: ContainerEntry, cgroups: Cgroups) -> None:
    """Thaw a container that the previous daemon process froze and did not thaw. Idempotent."""
    if exposes(pod) or container.bundle.frozen_file.exists():
        thaw(cgroups, pod.cgroups.container(container.id))
        container.bundle.frozen_file.unlink(missing_ok=True)


async def _freeze(cgroups: Cgroups, groups: list[str], what: str) -> None:
    try:
        async with asyncio.timeout(FREEZE_TIMEOUT):
            # In version 1 a group whose processes fork meanwhile can stay at FREEZING for ever: one more write
            # counts them again, and some need to be thawed first. runc does the same.
            for tries in count():
                waiting = [group for group in groups if not cgroups.is_frozen(group)]
                if tries and not waiting:
                    break
                if tries % POLLS_TO_REFREEZE == 0:
                    for group in waiting:
                        _write_frozen(cgroups, group, thaw_first=tries % POLLS_TO_THAW == POLLS_TO_REFREEZE)
                await asyncio.sleep(FREEZE_POLL)
    except TimeoutError:
        raise DeadlineExceeded(f"{what} could not be frozen within {FREEZE_TIMEOUT:g} s") from None


def _write_frozen(cgroups: Cgroups, group: str, *, thaw_first: bool) -> None:
    with suppress(FileNotFoundError):  # the container has exited
        if thaw_first:
            cgroups.freeze(group, frozen=False)
        cgroups.freeze(group, frozen=True)


def _runs(container: ContainerEntry) -> bool:
    return container.value.state is ContainerState.RUNNING
