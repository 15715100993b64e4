# SPDX-License-Identifier: AGPL-3.0-or-later
"""A CT's limits and usage in the cgroup tree, on cgroup v2 as Proxmox has it and on v1 or hybrid machines.

Proxmox's numbers are v2's: ``cpuunits`` is a weight from 1 to 10000, 100 being the kernel's default.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIB = 1024 * 1024
CPU_PERIOD_US = 100_000
DEFAULT_MEMORY_MIB = 512
DEFAULT_SWAP_MIB = 512
DEFAULT_CPU_WEIGHT = 100
SWEEP_TIMEOUT_S = 10.0
_SWEEP_POLL_S = 0.005
_HIGH_GAP_MIB = 128
_HIGH_GAP_FROM_MIB = 16 * 1024

ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Limit:
    """One limit file: ``controller`` is its hierarchy on v1 and not used on v2."""

    controller: str
    file: str
    value: str


@dataclass(frozen=True)
class Usage:
    """What a CT uses now: bytes, nanoseconds of CPU time, bytes read and written."""

    memory: int
    swap: int
    cpu_ns: int
    disk_read: int
    disk_written: int


class CgroupTree:
    """The machine's cgroup tree of either version. CTs live in ``lxc/VMID``."""

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self.unified = (root / "cgroup.controllers").exists()

    @property
    def key_prefix(self) -> str:
        """The prefix of LXC's config keys for this version."""
        return "lxc.cgroup2" if self.unified else "lxc.cgroup"

    def limits(self, config: Mapping[str, Any]) -> list[Limit]:
        """The limits of a CT's config, in an order in which each may be lowered or raised at a start."""
        return [*self.memory_limits(config), *self.cpu_limits(config)]

    def memory_limits(self, config: Mapping[str, Any]) -> list[Limit]:
        memory = int(config.get("memory", DEFAULT_MEMORY_MIB))
        swap = int(config.get("swap", DEFAULT_SWAP_MIB))
        if not self.unified:
            return self._memory_v1(memory * MIB, swap * MIB)
        return [
            Limit("memory", "memory.max", str(memory * MIB)),
            Limit("memory", "memory.high", str(memory_high(memory))),
            Limit("memory", "memory.swap.max", str(swap * MIB)),
        ]

    def _memory_v1(self, memory: int, swap: int) -> list[Limit]:
        limits = [Limit("memory", "memory.limit_in_bytes", str(memory))]
        if (self._root / "memory" / "memory.memsw.limit_in_bytes").exists():
            # After the other: memory and swap together may at no moment be less than memory alone (EINVAL).
            limits.append(Limit("memory", "memory.memsw.limit_in_bytes", str(memory + swap)))
        return limits

    def cpu_limits(self, config: Mapping[str, Any]) -> list[Limit]:
        quota = int(float(config.get("cpulimit", 0)) * CPU_PERIOD_US)
        weight = int(config.get("cpuunits", DEFAULT_CPU_WEIGHT))
        if self.unified:
            maximum = f"{quota} {CPU_PERIOD_US}" if quota else f"max {CPU_PERIOD_US}"
            return [Limit("cpu", "cpu.max", maximum), Limit("cpu", "cpu.weight", str(weight))]
        return [
            Limit("cpu", "cpu.cfs_period_us", str(CPU_PERIOD_US)),
            Limit("cpu", "cpu.cfs_quota_us", str(quota or -1)),
            # v1's default is 1024 and its minimum 2.
            Limit("cpu", "cpu.shares", str(max(2, weight * 1024 // DEFAULT_CPU_WEIGHT))),
        ]

    def cpuset(self, cores: int, vmid: int) -> Limit | None:
        """``cores`` of the machine's CPUs, spread over the machine by VMID; None when that is all of them."""
        if cores <= 0 or cores >= len(available := self._available_cpus()):
            return None
        # Proxmox chooses at random (PVE::LXC::update_lxc_config). By VMID a CT has the same CPUs each time.
        chosen = sorted(available[(vmid + n) % len(available)] for n in range(cores))
        return Limit("cpuset", "cpuset.cpus", ",".join(map(str, chosen)))

    def set_cores(self, vmid: int, cores: int) -> None:
        """Give a running CT ``cores`` CPUs at once, or all for 0."""
        every = ",".join(map(str, self._available_cpus()))
        limit = self.cpuset(cores, vmid)
        wanted = limit.value if limit else every
        top = self._directory("cpuset") / "lxc" / str(vmid)
        if self.unified:
            (top / "cpuset.cpus").write_text(wanted)
            return
        # v1 wants each cgroup within its parent at every moment: first widen from the top, then narrow from below.
        below = [top, *sorted(path for path in top.rglob("*") if path.is_dir())]
        for path in below:
            (path / "cpuset.cpus").write_text(every)
        for path in reversed(below):
            (path / "cpuset.cpus").write_text(wanted)

    def _available_cpus(self) -> list[int]:
        name = "cpuset.cpus.effective" if self.unified else "cpuset.cpus"
        return parse_cpu_list((self._directory("cpuset") / name).read_text())

    def apply(self, vmid: int, limits: Iterable[Limit]) -> None:
        """Write limits to a running CT's cgroup at once. Raises OSError when the kernel refuses one."""
        refused: list[tuple[Path, str]] = []
        for limit in limits:
            path = self._directory(limit.controller) / "lxc" / str(vmid) / limit.file
            try:
                path.write_text(limit.value)
            except OSError:
                refused.append((path, limit.value))
        # v1 wants memory <= memory+swap at every moment: what was too early the first time fits now.
        for path, value in reversed(refused):
            path.write_text(value)

    def exists(self, vmid: int) -> bool:
        """True while a CT runs, or after its monitor was killed before it could tidy up."""
        return any(path.exists() for path in self._of_ct(vmid))

    def sweep(self, vmid: int) -> None:
        """Kill what is left of a CT without a monitor, and remove its cgroups. Blocks until they are gone.

        Raises TimeoutError for a process that does not die. Idempotent.
        """
        deadline = time.monotonic() + SWEEP_TIMEOUT_S
        for top in self._of_ct(vmid):
            while top.exists():
                _kill_all(top)
                _remove_tree(top)
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{top} still holds processes")
                time.sleep(_SWEEP_POLL_S)

    def _of_ct(self, vmid: int) -> list[Path]:
        hierarchies = [self._root] if self.unified else [path for path in self._root.iterdir() if path.is_dir()]
        return [path / kind / str(vmid) for path in hierarchies for kind in ("lxc", "lxc.monitor")]

    def usage(self, vmid: int) -> Usage:
        """The CT's usage; zeros for what is not counted or already gone."""
        if self.unified:
            return self._usage_v2(self._root / "lxc" / str(vmid))
        return self._usage_v1(vmid)

    def _usage_v2(self, directory: Path) -> Usage:
        memory = _number(directory / "memory.current") - _field(directory / "memory.stat", "inactive_file")
        read, written = _io_stat(directory / "io.stat")
        return Usage(
            memory=max(memory, 0),
            swap=_number(directory / "memory.swap.current"),
            cpu_ns=_field(directory / "cpu.stat", "usage_usec") * 1000,
            disk_read=read,
            disk_written=written,
        )

    def _usage_v1(self, vmid: int) -> Usage:
        memory = self._directory("memory") / "lxc" / str(vmid)
        resident = _number(memory / "memory.usage_in_bytes")
        cached = _field(memory / "memory.stat", "total_inactive_file")
        read, written = _blkio(self._directory("blkio") / "lxc" / str(vmid) / "blkio.throttle.io_service_bytes")
        return Usage(
            memory=max(resident - cached, 0),
            swap=_field(memory / "memory.stat", "total_swap"),
            cpu_ns=_number(self._directory("cpuacct") / "lxc" / str(vmid) / "cpuacct.usage"),
            disk_read=read,
            disk_written=written,
        )

    def _directory(self, controller: str) -> Path:
        return self._root if self.unified else self._root / controller


def _kill_all(top: Path) -> None:
    for path in top.glob("**/cgroup.procs"):
        for pid in _read(path).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


def _remove_tree(top: Path) -> None:
    """Remove a cgroup and those below it, as far as they are empty."""
    for path in sorted((path for path in top.rglob("*") if path.is_dir()), reverse=True):
        # A killed process is in its cgroup until it is reaped (EBUSY): `sweep` comes back.
        with contextlib.suppress(OSError):
            path.rmdir()
    with contextlib.suppress(OSError):
        top.rmdir()


def memory_high(memory_mib: int) -> int:
    """Where Proxmox starts to throttle a CT of ``memory_mib``, in bytes."""
    if memory_mib >= _HIGH_GAP_FROM_MIB:
        return (memory_mib - _HIGH_GAP_MIB) * MIB
    # PVE::LXC::Config::calculate_memory_constraints.
    return memory_mib * MIB * 1016 // 1024


def parse_cpu_list(text: str) -> list[int]:
    """The CPUs in a kernel list such as ``0-3,8``."""
    cpus: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            cpus.extend(range(int(first), int(last or first) + 1))
    return cpus


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _number(path: Path) -> int:
    return int(_read(path).strip() or 0)


def _field(path: Path, name: str) -> int:
    for line in _read(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def _io_stat(path: Path) -> tuple[int, int]:
    read = written = 0
    for entry in _read(path).split():
        key, _, value = entry.partition("=")
        read += int(value) if key == "rbytes" else 0
        written += int(value) if key == "wbytes" else 0
    return read, written


def _blkio(path: Path) -> tuple[int, int]:
    read = written = 0
    for line in _read(path).splitlines():
        match line.split():
            case [_device, "Read", value]:
                read += int(value)
            case [_device, "Write", value]:
                written += int(value)
    return read, written
