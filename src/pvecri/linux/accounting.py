# SPDX-License-Identifier: Apache-2.0
"""Resource usage of a cgroup, in the same terms for versions 1 and 2.

Counters include the groups below and start at the group's creation. Times are nanoseconds, sizes bytes. What this
kernel does not count (no controller, a file of a later version) is None or omitted, never 0. Sources: the kernel's
admin-guide, cgroup-v2.rst, cgroup-v1/ and accounting/psi.rst.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pvecri.linux.cgroups import Cgroups

UNLIMITED = 1 << 60
"""Version 1 shows "no limit" as 2^63 less a page."""

_MICROSECOND = 1000
_HUGEPAGES = Path("/sys/kernel/mm/hugepages")


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU time of all cores together; `throttled` is the time during which a CFS quota was exhausted."""

    usage: int
    user: int | None = None
    system: int | None = None
    periods: int | None = None
    throttled_periods: int | None = None
    throttled: int | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory and swap. A limit of None is no limit. `own_page_faults` exclude the groups below.

    `limit_hits` is how often the limit was reached, `oom_kills` how many processes the OOM killer has killed.
    """

    usage: int
    limit: int | None
    rss: int
    cache: int
    mapped_file: int
    inactive_file: int
    page_faults: int
    major_page_faults: int
    own_page_faults: int
    own_major_page_faults: int
    max_usage: int | None = None
    kernel: int | None = None
    swap: int | None = None
    swap_limit: int | None = None
    limit_hits: int | None = None
    oom_kills: int | None = None

    @property
    def working_set(self) -> int:
        """Usage less inactive page cache: what the kubelet compares with eviction thresholds."""
        return max(0, self.usage - self.inactive_file)


@dataclass(frozen=True, slots=True)
class Stall:
    """One line of a `*.pressure` file: total stall time, and percentages of the last 10, 60 and 300 seconds."""

    total: int
    avg10: float
    avg60: float
    avg300: float


@dataclass(frozen=True, slots=True)
class Pressure:
    """Pressure stall information (PSI): `some` tasks stalled, or all non-idle ones at once (`full`)."""

    some: Stall
    full: Stall | None


@dataclass(frozen=True, slots=True)
class DeviceIo:
    """Bytes and operations on one block device."""

    major: int
    minor: int
    read_bytes: int = 0
    written_bytes: int = 0
    reads: int = 0
    writes: int = 0


@dataclass(frozen=True, slots=True)
class Hugepages:
    """Usage of huge pages of one size, such as `2MB`, in bytes."""

    size: str
    usage: int
    max_usage: int | None


class Accounting:
    """Reads the counters of groups. Every method returns None or an empty list for a group that is gone."""

    def __init__(self, cgroups: Cgroups) -> None:
        self._v2 = cgroups.pure_v2
        self._trees = {name: str(tree) for name, tree in cgroups.v1.items()}
        self._unified = str(cgroups.v2) if cgroups.v2 else ""
        self._hugepage_sizes = tuple(_hugepage_sizes())

    def _directory(self, group: str, controller: str) -> str:
        return self._trees.get(controller, self._unified) + group

    def cpu_time(self, group: str) -> int | None:
        """`Cpu.usage` alone, which is one small file to read."""
        if self._v2:
            usage = _table(f"{self._unified}{group}/cpu.stat").get("usage_usec")
            return None if usage is None else usage * _MICROSECOND
        return _number(f"{self._directory(group, 'cpuacct')}/cpuacct.usage")

    def cpu(self, group: str) -> Cpu | None:
        """CPU time and throttling."""
        return self._cpu_v2(group) if self._v2 else self._cpu_v1(group)

    def _cpu_v2(self, group: str) -> Cpu | None:
        stat = _table(f"{self._unified}{group}/cpu.stat")
        if "usage_usec" not in stat:
            return None
        return Cpu(
            usage=stat["usage_usec"] * _MICROSECOND,
            user=stat["user_usec"] * _MICROSECOND,
            system=stat["system_usec"] * _MICROSECOND,
            periods=stat.get("nr_periods"),
            throttled_periods=stat.get("nr_throttled"),
            throttled=stat["throttled_usec"] * _MICROSECOND if "throttled_usec" in stat else None,
        )

    def _cpu_v1(self, group: str) -> Cpu | None:
        times = self._directory(group, "cpuacct")
        usage = _number(f"{times}/cpuacct.usage")
        if usage is None:
            return None
        stat = _table(f"{self._directory(group, 'cpu')}/cpu.stat")
        return Cpu(
            usage=usage,
            user=_number(f"{times}/cpuacct.usage_user"),
            system=_number(f"{times}/cpuacct.usage_sys"),
            periods=stat.get("nr_periods"),
            throttled_periods=stat.get("nr_throttled"),
            throttled=stat.get("throttled_time"),  # nanoseconds already, unlike version 2
        )

    def memory(self, group: str, *, details: bool = False) -> Memory | None:
        """Memory and swap usage and limits.

        Only with `details` also `max_usage`, `kernel`, `limit_hits` and `oom_kills`: each is a file to read.
        """
        directory = self._directory(group, "memory")
        stat = _table(f"{directory}/memory.stat")
        usage = _number(f"{directory}/{'memory.current' if self._v2 else 'memory.usage_in_bytes'}")
        if not stat or usage is None:
            return None
        memory = _memory_v2(directory, stat, usage) if self._v2 else _memory_v1(directory, stat, usage)
        if not details:
            return memory
        return _with_details_v2(memory, directory, stat) if self._v2 else _with_details_v1(memory, directory)

    def pressure(self, group: str, resource: str) -> Pressure | None:
        """PSI of a `resource`: cpu, memory or io. A hybrid host has it in its version 2 tree."""
        return parse_pressure(_read(f"{self._unified}{group}/{resource}.pressure")) if self._unified else None

    def io(self, group: str) -> list[DeviceIo]:
        """I/O per block device; devices without any are omitted."""
        if self._v2:
            return parse_io_stat(_read(f"{self._unified}{group}/io.stat"))
        directory = self._directory(group, "blkio")
        return parse_blkio(
            # The files without `_recursive` leave out the groups below.
            _read(f"{directory}/blkio.throttle.io_service_bytes_recursive"),
            _read(f"{directory}/blkio.throttle.io_serviced_recursive"),
        )

    def tasks(self, group: str) -> int | None:
        """The number of processes and threads."""
        return _number(f"{self._directory(group, 'pids')}/pids.current")

    def tasks_max(self, group: str) -> int | None:
        """The limit of `tasks`; 0 is none."""
        text = _read(f"{self._directory(group, 'pids')}/pids.max").strip()
        return (0 if text == b"max" else int(text)) if text else None

    def hugepages(self, group: str) -> list[Hugepages]:
        """Huge pages per size."""
        directory = self._directory(group, "hugetlb")
        current = "current" if self._v2 else "usage_in_bytes"
        found = []
        for size in self._hugepage_sizes:
            usage = _number(f"{directory}/hugetlb.{size}.{current}")
            if usage is not None:
                # Version 2 records no peak of huge pages.
                most = None if self._v2 else _number(f"{directory}/hugetlb.{size}.max_usage_in_bytes")
                found.append(Hugepages(size, usage, most))
        return found


def _memory_v2(directory: str, stat: Mapping[str, int], usage: int) -> Memory:
    faults, major_faults = stat.get("pgfault", 0), stat.get("pgmajfault", 0)
    return Memory(
        usage=usage,
        limit=_limit(f"{directory}/memory.max"),
        # The same counters as cAdvisor's for both versions, so that the figures of a node do not change with its
        # runtime.
        rss=stat.get("anon", 0),
        cache=stat.get("file", 0),
        mapped_file=stat.get("file_mapped", 0),
        inactive_file=stat.get("inactive_file", 0),
        page_faults=faults,
        major_page_faults=major_faults,
        own_page_faults=faults,  # version 2 has only counters that include the groups below
        own_major_page_faults=major_faults,
        swap=_number(f"{directory}/memory.swap.current"),
        swap_limit=_limit(f"{directory}/memory.swap.max"),
    )


def _with_details_v2(memory: Memory, directory: str, stat: Mapping[str, int]) -> Memory:
    events = _table(f"{directory}/memory.events")
    return replace(
        memory,
        max_usage=_number(f"{directory}/memory.peak"),  # Linux 5.19
        kernel=stat.get("kernel"),  # Linux 5.18
        limit_hits=events.get("max"),
        oom_kills=events.get("oom_kill"),
    )


def _memory_v1(directory: str, stat: Mapping[str, int], usage: int) -> Memory:
    limit = _limit(f"{directory}/memory.limit_in_bytes")
    both = _limit(f"{directory}/memory.memsw.limit_in_bytes")  # memory and swap together
    return Memory(
        usage=usage,
        limit=limit,
        rss=stat.get("total_rss", 0),
        cache=stat.get("total_cache", 0),
        mapped_file=stat.get("total_mapped_file", 0),
        inactive_file=stat.get("total_inactive_file", 0),
        page_faults=stat.get("total_pgfault", 0),
        major_page_faults=stat.get("total_pgmajfault", 0),
        own_page_faults=stat.get("pgfault", 0),
        own_major_page_faults=stat.get("pgmajfault", 0),
        swap=stat.get("total_swap"),
        swap_limit=None if both is None else max(0, both - (limit or 0)),
    )


def _with_details_v1(memory: Memory, directory: str) -> Memory:
    return replace(
        memory,
        max_usage=_number(f"{directory}/memory.max_usage_in_bytes"),
        kernel=_number(f"{directory}/memory.kmem.usage_in_bytes"),
        limit_hits=_number(f"{directory}/memory.failcnt"),
        oom_kills=_table(f"{directory}/memory.oom_control").get("oom_kill"),
    )


def parse_pressure(text: bytes) -> Pressure | None:
    """A `*.pressure` file; None if it is empty. `full` is absent for the cpu before Linux 5.13."""
    stalls: dict[bytes, Stall] = {}
    for line in text.splitlines():
        kind, *fields = line.split()
        values = dict(field.split(b"=") for field in fields)
        stalls[kind] = Stall(
            total=int(values[b"total"]) * _MICROSECOND,
            avg10=float(values[b"avg10"]),
            avg60=float(values[b"avg60"]),
            avg300=float(values[b"avg300"]),
        )
    return Pressure(stalls[b"some"], stalls.get(b"full")) if b"some" in stalls else None


def parse_io_stat(text: bytes) -> list[DeviceIo]:
    """Version 2's `io.stat`: `8:0 rbytes=1 wbytes=2 rios=3 wios=4 …`, a device without I/O has no fields."""
    found = []
    for line in text.splitlines():
        device, *fields = line.split()
        major, minor = device.split(b":")
        values = dict(field.split(b"=") for field in fields if b"=" in field)
        if b"rbytes" in values:
            counts = [int(values.get(key, 0)) for key in (b"rbytes", b"wbytes", b"rios", b"wios")]
            found.append(DeviceIo(int(major), int(minor), *counts))
    return found


def parse_blkio(bytes_text: bytes, operations_text: bytes) -> list[DeviceIo]:
    """Version 1's `blkio.throttle.*` files: lines such as `8:0 Read 4096`."""
    sizes, operations = dict(_blkio_lines(bytes_text)), dict(_blkio_lines(operations_text))
    found = []
    for device in dict.fromkeys(device for device, _ in sizes):
        major, minor = device.split(b":")
        read, write = (device, b"Read"), (device, b"Write")
        counts = [table.get(key, 0) for table in (sizes, operations) for key in (read, write)]
        found.append(DeviceIo(int(major), int(minor), *counts))
    return found


def _blkio_lines(text: bytes) -> Iterator[tuple[tuple[bytes, bytes], int]]:
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3:  # the last line, `Total N`, has two
            yield (words[0], words[1]), int(words[2])


def swap_total() -> int:
    """The node's swap space in bytes (SwapTotal)."""
    return _meminfo(b"SwapTotal")


def available_memory() -> float:
    """The share of the node's memory that programs can still get without swapping: MemAvailable of MemTotal."""
    return _meminfo(b"MemAvailable") / (_meminfo(b"MemTotal") or 1)


def _meminfo(name: bytes) -> int:
    """Bytes of an entry of /proc/meminfo (proc(5)); 0 if there is none."""
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith(name + b":"):
            return int(line.split()[1]) << 10
    return 0


def _hugepage_sizes() -> Iterator[str]:
    """Page sizes in the names of cgroup files: `2MB`, `1GB`."""
    for directory in sorted(_HUGEPAGES.glob("hugepages-*kB")):
        size = int(directory.name.removeprefix("hugepages-").removesuffix("kB"))
        unit = next((pair for pair in ((1 << 20, "GB"), (1 << 10, "MB")) if size >= pair[0]), (1, "KB"))
        yield f"{size // unit[0]}{unit[1]}"


def _read(path: str) -> bytes:
    """A file's content, empty if there is none. Plain system calls: a metrics request reads hundreds."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        # One read(2) is enough: the kernel formats the whole content of such a file at once (seq_file).
        return os.read(fd, 1 << 16)
    except OSError:  # ENODEV: the group was removed after open(2); EOPNOTSUPP: PSI is disabled
        return b""
    finally:
        os.close(fd)


def _number(path: str) -> int | None:
    text = _read(path)
    return int(text) if text else None


def _limit(path: str) -> int | None:
    """A limit in bytes; None for no limit."""
    text = _read(path).strip()
    if not text or text == b"max":
        return None
    number = int(text)
    return number if number < UNLIMITED else None


def _table(path: str) -> dict[str, int]:
    """A flat keyed file, `key number` lines; empty if there is none."""
    words = _read(path).decode().split()
    return dict(zip(words[::2], map(int, words[1::2]), strict=False))
