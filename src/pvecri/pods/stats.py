# SPDX-License-Identifier: Apache-2.0
"""What containers use, read from their cgroups when a client asks."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pvecri.linux.cgroups import Cgroups


@dataclass(frozen=True)
class Usage:
    """A cgroup's use at `timestamp`: CPU nanoseconds since it was made, bytes of memory and swap, page faults."""

    timestamp: int
    cpu_ns: int = 0
    memory_usage: int = 0
    memory_limit: int = 0
    memory_rss: int = 0
    inactive_file: int = 0
    page_faults: int = 0
    major_page_faults: int = 0
    swap_usage: int = 0

    @property
    def working_set(self) -> int:
        """Memory that cannot be reclaimed at once, as the kubelet counts it."""
        return max(0, self.memory_usage - self.inactive_file)

    @property
    def memory_available(self) -> int:
        """Bytes left below the limit; 0 when there is no limit."""
        return max(0, self.memory_limit - self.working_set) if self.memory_limit else 0


UNLIMITED = 1 << 60
"""Version 1 writes "no limit" as a number near 2^63."""


def read(cgroups: Cgroups, group: str) -> Usage:
    """The use of a group, or zeros when it is gone."""
    with suppress(FileNotFoundError, OSError):
        return _read_v2(cgroups.directory(group, "memory")) if cgroups.pure_v2 else _read_v1(cgroups, group)
    return Usage(timestamp=time.time_ns())


def _read_v2(directory: Path) -> Usage:
    memory = _table(directory / "memory.stat")
    limit = (directory / "memory.max").read_text().strip()
    return Usage(
        timestamp=time.time_ns(),
        cpu_ns=_table(directory / "cpu.stat").get("usage_usec", 0) * 1000,
        memory_usage=_number(directory / "memory.current"),
        memory_limit=0 if limit == "max" else int(limit),
        memory_rss=memory.get("anon", 0),
        inactive_file=memory.get("inactive_file", 0),
        page_faults=memory.get("pgfault", 0),
        major_page_faults=memory.get("pgmajfault", 0),
        swap_usage=_number(directory / "memory.swap.current"),
    )


def _read_v1(cgroups: Cgroups, group: str) -> Usage:
    directory = cgroups.directory(group, "memory")
    memory = _table(directory / "memory.stat")
    usage, limit = _number(directory / "memory.usage_in_bytes"), _number(directory / "memory.limit_in_bytes")
    return Usage(
        timestamp=time.time_ns(),
        cpu_ns=_number(cgroups.directory(group, "cpuacct") / "cpuacct.usage"),
        memory_usage=usage,
        memory_limit=limit if limit < UNLIMITED else 0,
        memory_rss=memory.get("total_rss", 0),
        inactive_file=memory.get("total_inactive_file", 0),
        page_faults=memory.get("total_pgfault", 0),
        major_page_faults=memory.get("total_pgmajfault", 0),
        swap_usage=memory.get("total_swap", 0),
    )


def _table(path: Path) -> dict[str, int]:
    """A file of `key number` lines."""
    return {key: int(value) for key, value in (line.split()[:2] for line in path.read_text().splitlines())}


def _number(path: Path) -> int:
    return int(path.read_text()) if path.exists() else 0
