# SPDX-License-Identifier: Apache-2.0
"""A front's cgroup for a container, as a second place of the one below the CT.

CRI-O and the kubelet's cAdvisor read a container's usage at the path that they chose for it. The processes are
below the CT's cgroup, whose path Proxmox chooses; so that cgroup is mounted at the front's path, too. A mount does
not move a process: limits and accounting are the CT's.

On cgroup version 2 their library follows no mount unless openat2(2) is missing (decision 0091).
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from pvecri.linux import mounts
from pvecri.linux.cgroups import ROOT, Cgroups


def make(cgroups: Cgroups, group: str, place: str) -> None:
    """Show a cgroup at the path `place` in every tree. Idempotent."""
    for source, target in zip(cgroups.directories(group), cgroups.directories(place), strict=True):
        if not source.is_dir() or mounts.is_mountpoint(target):
            continue
        # As the OCI runtimes do: who has no cgroup for pods leaves it to them to make the parents.
        target.mkdir(parents=True, exist_ok=True)
        mounts.bind(source, target, recursive=False)


def remove(cgroups: Cgroups, place: str) -> None:
    """Undo `make`, but for the parents. Idempotent."""
    if place:
        for target in cgroups.directories(place):
            _remove(target)


def remove_others(first: int, last: int, known: Collection[str]) -> None:
    """Undo `make` for containers that are not `known`, of CTs in a range of VMIDs. Idempotent."""
    for entry in mounts.mounts("/lxc/"):
        # /lxc/VMID/CONTAINER, in whichever tree
        match entry.root.split("/"):
            case ["", "lxc", vmid, container] if vmid.isdecimal() and first <= int(vmid) <= last:
                if container not in known and entry.mountpoint.is_relative_to(ROOT):
                    _remove(entry.mountpoint)


def _remove(target: Path) -> None:
    with suppress(OSError):  # not mounted
        mounts.umount(target, detach=True)
    with suppress(OSError):  # not there, or another's: it has children
        target.rmdir()
