# SPDX-License-Identifier: Apache-2.0
"""A container that is being made is exposed to those that share its PID namespace; here it is hidden from them.

Until it has changed its root, the OCI runtime's process inside the new container has the node's root directory
and mounts. Whoever sees it in /proc and may trace it reaches the node through `/proc/PID/root`. In a user
namespace nobody may: the process belongs to the node's. Where containers share PIDs in the node's user
namespace, and one has CAP_SYS_PTRACE, it can. So the others are frozen meanwhile, some tens of milliseconds.
Commands that are executed in a container have its root before they are seen.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from pvecri.errors import DeadlineExceeded
from pvecri.linux.cgroups import Cgroups
from pvecri.model import ContainerState, NamespaceMode, UserNamespaceKind
from pvecri.pods.registry import ContainerEntry, PodEntry
from pvecri.supervision import report

FREEZE_TIMEOUT = 10.0
"""Seconds in which all processes of a container must have stopped."""


def exposes(pod: PodEntry) -> bool:
    """Whether containers that share PIDs are exposed to each other while one is made.

    A privileged pod, and one with the node's PIDs, has the node anyway.
    """
    security = pod.value.config.security
    node_users = pod.value.user_namespace.kind is UserNamespaceKind.NODE
    return node_users and not security.privileged and security.namespaces.pid is not NamespaceMode.NODE


@asynccontextmanager
async def hidden(pod: PodEntry, container: ContainerEntry, cgroups: Cgroups) -> AsyncIterator[None]:
    """Have no other container of the pod run while the context lasts, if `container` is exposed to some.

    DeadlineExceeded when one cannot be frozen; all that were go on.
    """
    shares = container.value.config.security.namespaces.pid in (NamespaceMode.POD, NamespaceMode.TARGET)
    if not (shares and exposes(pod)):
        yield
        return
    async with pod.pids_lock:
        others = [pod.group(each.id) for each in pod.containers.values() if _runs(each) and each is not container]
        try:
            await _freeze(cgroups, others)
            yield
        finally:
            for group in others:
                thaw(cgroups, group)


def thaw(cgroups: Cgroups, group: str) -> None:
    """Let the processes of a group go on. Idempotent; a group that is gone is fine."""
    try:
        cgroups.freeze(group, frozen=False)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV):  # the others must still be thawed
            report(error, "thaw of container", f"thawing {group}")


async def _freeze(cgroups: Cgroups, groups: list[str]) -> None:
    for group in groups:
        with suppress(FileNotFoundError):  # it has ended
            cgroups.freeze(group, frozen=True)
    try:
        async with asyncio.timeout(FREEZE_TIMEOUT):
            while not all(cgroups.is_frozen(group) for group in groups):
                await asyncio.sleep(0.001)
    except TimeoutError:
        raise DeadlineExceeded(
            f"the other containers of the pod could not be frozen within {FREEZE_TIMEOUT:g} s"
        ) from None


def _runs(container: ContainerEntry) -> bool:
    return container.value.state is ContainerState.RUNNING
