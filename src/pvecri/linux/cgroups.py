# SPDX-License-Identifier: Apache-2.0
"""cgroups of version 2, and of version 1 with a tree for each controller, behind one set of calls.

A *group* is a path such as `/lxc/105/web`, the same in every tree. Proxmox VE 8 and 9 have version 2 only; older
hosts have version 1, or hybrid: version 1's controllers beside a version 2 tree without any.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pvecri.linux import device_filter

ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class DeviceRule:
    """An entry of a device allow-list; `kind` is c, b or a, None any number."""

    kind: str
    major: int | None
    minor: int | None
    access: str = "rwm"

    def __str__(self) -> str:
        major = "*" if self.major is None else self.major
        minor = "*" if self.minor is None else self.minor
        return f"{self.kind} {major}:{minor} {self.access}"


EVERY_DEVICE = (DeviceRule("c", None, None), DeviceRule("b", None, None))


@dataclass(frozen=True)
class Cgroups:
    """The node's cgroup trees by mount point: `v2` the unified one, also of a hybrid host; `v1` by controller."""

    v2: Path | None
    v1: dict[str, Path]

    @property
    def pure_v2(self) -> bool:
        """Whether version 2 has every controller, as on Proxmox VE 8 and 9."""
        return not self.v1

    @property
    def controllers(self) -> frozenset[str]:
        """The names of the available controllers."""
        if self.pure_v2 and self.v2 is not None:
            return frozenset((self.v2 / "cgroup.controllers").read_text().split())
        return frozenset(self.v1)

    def directories(self, group: str) -> list[Path]:
        """The group's directory in each tree; it need not exist."""
        trees = {*self.v1.values()} | ({self.v2} if self.v2 else set())
        return sorted(tree / group.lstrip("/") for tree in trees)

    def directory(self, group: str, controller: str) -> Path:
        """The group's directory in the tree that has `controller`."""
        tree = self.v1.get(controller, self.v2)
        if tree is None:
            raise FileNotFoundError(f"cgroup controller {controller}")
        return tree / group.lstrip("/")

    def own_directory(self, controller: str) -> Path:
        """The directory of the calling process's group in the tree that has `controller` (cgroups(7))."""
        name = controller if controller in self.v1 else ""  # version 2's line has no controllers
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if name in controllers.split(","):
                return self.directory(group, controller)
        raise FileNotFoundError(f"cgroup controller {controller}")

    def make(self, group: str) -> None:
        """Create a group, whose parent exists, in every tree. Idempotent."""
        for directory in self.directories(group):
            directory.mkdir(exist_ok=True)  # cpu and cpuacct may be one tree: directories() has it once
        if "cpuset" in self.v1:
            _inherit_cpuset(self.directory(group, "cpuset"))

    def remove(self, group: str) -> None:
        """Remove a group and those below it in every tree. Idempotent; OSError EBUSY if a process is left."""
        for directory in self.directories(group):
            for path, _, _ in os.walk(directory, topdown=False):  # rmdir(2) refuses a group with children
                with suppress(FileNotFoundError):
                    Path(path).rmdir()

    def exists(self, group: str) -> bool:
        """Whether any tree has the group."""
        return any(directory.exists() for directory in self.directories(group))

    def children(self, group: str) -> list[str]:
        """The names of the groups right below a group; none if it does not exist."""
        directory = self.v1.get("pids") or self.v1.get("memory") or self.v2
        if directory is None:
            return []
        with suppress(FileNotFoundError):
            return [entry.name for entry in os.scandir(directory / group.lstrip("/")) if entry.is_dir()]
        return []

    def processes(self, group: str) -> list[int]:
        """The host PIDs of the processes in the group and below it, parents before children."""
        return list(self.each_process(group))

    def each_process(self, group: str) -> Iterator[int]:
        """As `processes`, read group by group: whoever looks for one reads no further than necessary."""
        # One tree will do: runc, crun and LXC put a process into the same group of every tree.
        directory = self.v1.get("pids") or self.v1.get("memory") or self.v2
        if directory is None:
            return
        top = directory / group.lstrip("/")
        yield from _pids(top)
        for path, directories, _ in os.walk(top):
            for name in directories:
                yield from _pids(Path(path, name))

    def account(self, group: str, pid: int) -> None:
        """Move a process to a group in the trees that account for it: memory, CPU, processes, I/O.

        Not in the others of version 1: each move there costs a millisecond. ProcessLookupError if it has ended.
        """
        available = self.controllers
        for directory in {self.directory(group, each) for each in _ACCOUNTING if each in available}:
            procs = directory / "cgroup.procs"
            if procs.exists():
                procs.write_text(str(pid))

    def kill(self, group: str) -> None:
        """Send SIGKILL to every process in the group and below it. Idempotent."""
        if self.v2 is not None and self.pure_v2:
            with suppress(FileNotFoundError):
                # A fork cannot escape it, as it can escape kill(2) for each PID of a list (cgroup-v2.rst).
                (self.v2 / group.lstrip("/") / "cgroup.kill").write_text("1")  # Linux 5.14
            return
        for pid in self.processes(group):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def freeze(self, group: str, *, frozen: bool) -> None:
        """Freeze or thaw the group and those below it; returns without waiting. Idempotent.

        FileNotFoundError if there is no such group.
        """
        freezer = self.v1.get("freezer")
        if freezer is not None:
            (freezer / group.lstrip("/") / "freezer.state").write_text("FROZEN" if frozen else "THAWED")
        else:
            # A core file since Linux 5.2, so that a hybrid host's version 2 tree has it without any controller.
            self._unified(group, "cgroup.freeze").write_text("1" if frozen else "0")

    def thaw(self, group: str, *, below: bool) -> None:
        """Thaw a group, and with `below` all groups below it, whoever froze them. Idempotent; it may be gone.

        In both trees of a hybrid host, either can freeze. A group stays frozen as long as one above it is, and
        thawing that one does not thaw those below that were frozen themselves.
        """
        switches = [(self.v1["freezer"], "freezer.state", "THAWED")] if "freezer" in self.v1 else []
        switches += [(self.v2, "cgroup.freeze", "0")] if self.v2 is not None else []
        for tree, file, thawed in switches:
            directory = tree / group.lstrip("/")
            for path in [each for each, _, _ in os.walk(directory)] if below else [directory]:
                with suppress(OSError):  # the group does not exist or was removed meanwhile (ENODEV)
                    Path(path, file).write_text(thawed)

    def is_frozen(self, group: str) -> bool:
        """Whether all processes are frozen; True for a group that is gone."""
        freezer = self.v1.get("freezer")
        with suppress(FileNotFoundError):
            if freezer is not None:
                return (freezer / group.lstrip("/") / "freezer.state").read_text().strip() == "FROZEN"
            return "frozen 1" in self._unified(group, "cgroup.events").read_text().splitlines()
        return True

    def _unified(self, group: str, file: str) -> Path:
        if self.v2 is None:
            raise FileNotFoundError("no cgroup tree can freeze")
        return self.v2 / group.lstrip("/") / file

    def allow_devices(self, group: str, rules: Iterable[DeviceRule]) -> None:
        """Allow the groups below more devices: a child never has more than its parent.

        Version 1 appends the rules to the group's list. Version 2 has a BPF program instead, which cannot be
        changed: the group's is detached, and the children's own decide.
        """
        if not self.v1 and self.v2 is not None:
            device_filter.lift(self.v2 / group.lstrip("/"))
            return
        for rule in rules:
            (self.directory(group, "devices") / "devices.allow").write_text(str(rule))


def detect(root: Path = ROOT, table: Path = Path("/proc/self/mounts")) -> Cgroups:
    """The trees that the mount table has at and below `root`. Others, in a chroot for instance, are ignored.

    The first mount of each counts: further ones show a group of it (cgroup_mirror.py).
    """
    v1: dict[str, Path] = {}
    v2: Path | None = None
    for line in table.read_text().splitlines():
        _, target, fstype, options, *_ = line.split()
        path = Path(target)
        if not path.is_relative_to(root):
            continue
        if fstype == "cgroup2":
            v2 = v2 or path
        elif fstype == "cgroup":
            for option in options.split(","):
                # Others are mount options: rw, xattr, release_agent=….
                if option in _V1_CONTROLLERS or option.startswith("name="):
                    v1.setdefault(option, path)
    return Cgroups(v2=v2, v1=v1)


_ACCOUNTING = ("memory", "cpu", "cpuacct", "pids", "blkio", "hugetlb")

_V1_CONTROLLERS = frozenset(
    ("blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb", "memory", "net_cls", "net_prio")
    + ("perf_event", "pids", "rdma", "misc")
)


def _pids(directory: Path) -> list[int]:
    with suppress(OSError):  # ENODEV: the group was removed meanwhile
        return [int(pid) for pid in (directory / "cgroup.procs").read_text().split()]
    return []


def _inherit_cpuset(directory: Path) -> None:
    """Copy the parent's CPUs and memory nodes: a new v1 cpuset is empty and refuses processes (ENOSPC)."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        if not (directory / name).read_text().strip():
            (directory / name).write_text((directory.parent / name).read_text())
