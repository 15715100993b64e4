# SPDX-License-Identifier: Apache-2.0
"""A kubelet's cgroups as a kubelet makes them, in the machine's real cgroup trees."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from support import leaks

from pvecri.linux import cgroups
from pvecri.linux.cgroups import Cgroups

V1_FILES = {"memory.max": ("memory", "memory.limit_in_bytes"), "cpu.max": ("cpu", "cpu.cfs_quota_us")}
"""Where version 1 has the limits of version 2, by version 2's names."""


@dataclass(frozen=True)
class Group:
    """A cgroup; files go by their names of version 2, on machines of either version."""

    trees: Cgroups
    path: str

    def file(self, name: str) -> Path:
        """Where a limit is."""
        if self.trees.pure_v2:
            return self.trees.directory(self.path, name.partition(".")[0]) / name
        controller, v1_name = V1_FILES.get(name, (name.partition(".")[0], name))
        return self.trees.directory(self.path, controller) / v1_name

    def set(self, **limits: int) -> None:
        """Set limits, such as `pids_max=50`."""
        for name, value in limits.items():
            self.file(name.replace("_", ".")).write_text(str(value))

    def get(self, name: str) -> str:
        """What a limit's file says."""
        return self.file(name).read_text().strip()


def of(path: str) -> Group:
    """A cgroup of the machine."""
    return Group(cgroups.detect(), path)


@contextmanager
def kubepods() -> Iterator[Group]:
    """The kubelet's cgroup for all pods; at the end it is removed with all that is below."""
    root = of(f"/{leaks.PREFIX}kubelet")
    try:
        yield below(root, "kubepods")
    finally:
        root.trees.remove(root.path)


def below(group: Group, name: str) -> Group:
    """A cgroup below another, which is made with it if it is missing."""
    path = PurePosixPath(group.path, name)
    for parent in [*reversed(path.parents[:-1]), path]:
        group.trees.make(str(parent))
    for parent in [path, *path.parents[:-1]]:
        _delegate(group.trees, str(parent))
    return Group(group.trees, str(path))


def _delegate(trees: Cgroups, path: str) -> None:
    """Version 2 enables controllers for the groups below only by cgroup.subtree_control."""
    if trees.pure_v2 and trees.v2 is not None:
        parent = (trees.v2 / path.lstrip("/")).parent
        wanted = " ".join(f"+{name}" for name in (parent / "cgroup.controllers").read_text().split())
        (parent / "cgroup.subtree_control").write_text(wanted)
