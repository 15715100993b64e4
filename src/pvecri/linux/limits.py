# SPDX-License-Identifier: Apache-2.0
"""The limits that a control group sets, versions 1 and 2 in the same terms.

Sources: the kernel's admin-guide, cgroup-v2.rst (memory, cpu, pids, hugetlb) and cgroup-v1/. Version 1 has no
memory protection (`memory.min`, `memory.low`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pvecri.linux.accounting import UNLIMITED
from pvecri.linux.cgroups import Cgroups

SHARES_DEFAULT = 1024
WEIGHT_DEFAULT = 100


@dataclass(frozen=True, slots=True)
class Limits:
    """A group's own limits, not those of the groups above it. None is no limit; sizes are bytes.

    `cpu_quota` is microseconds in each period. `cpu_weight` is in the unit of the machine's version: a weight of
    1 to 10000 (version 2) or shares (version 1); None is the kernel's default. `hugepages` are by page size, as
    cgroup files name it (`2MB`).
    """

    memory: int | None = None
    memory_min: int = 0
    memory_low: int = 0
    swap: int | None = None
    cpu_quota: int | None = None
    cpu_weight: int | None = None
    pids: int | None = None
    hugepages: dict[str, int | None] = field(default_factory=dict)


def read(cgroups: Cgroups, group: str) -> Limits | None:
    """A group's limits; None if it does not exist. A limit that the machine cannot set reads as none."""
    if not cgroups.exists(group):
        return None
    return _read_v2(cgroups, group) if cgroups.pure_v2 else _read_v1(cgroups, group)


def _read_v2(cgroups: Cgroups, group: str) -> Limits:
    directory = cgroups.directory(group, "memory")
    weight = _number(directory / "cpu.weight")
    return Limits(
        memory=_number(directory / "memory.max"),
        memory_min=_number(directory / "memory.min") or 0,
        memory_low=_number(directory / "memory.low") or 0,
        swap=_number(directory / "memory.swap.max"),
        cpu_quota=_number(directory / "cpu.max"),
        cpu_weight=None if weight == WEIGHT_DEFAULT else weight,
        pids=_number(directory / "pids.max"),
        hugepages=_hugepages(directory, "max"),
    )


def _read_v1(cgroups: Cgroups, group: str) -> Limits:
    memory = _file(cgroups, group, "memory", "memory.limit_in_bytes")
    limit, both = _number(memory), _number(memory.with_name("memory.memsw.limit_in_bytes"))
    shares = _number(_file(cgroups, group, "cpu", "cpu.shares"))
    return Limits(
        memory=limit,
        # memory.memsw counts memory and swap together; version 1 has no limit of swap alone.
        swap=None if both is None else max(0, both - (limit or 0)),
        cpu_quota=_number(_file(cgroups, group, "cpu", "cpu.cfs_quota_us")),
        cpu_weight=None if shares == SHARES_DEFAULT else shares,
        pids=_number(_file(cgroups, group, "pids", "pids.max")),
        hugepages=_hugepages(_file(cgroups, group, "hugetlb", ""), "limit_in_bytes"),
    )


def set_pids(cgroups: Cgroups, group: str, limit: int | None) -> None:
    """Limit a group's processes and threads; OSError if the kernel refuses. Idempotent."""
    _write(_file(cgroups, group, "pids", "pids.max"), limit)


def pids_left(cgroups: Cgroups, group: str) -> int | None:
    """How many more processes and threads a group may have by its own limit; None without one."""
    maximum = _number(_file(cgroups, group, "pids", "pids.max"))
    current = _number(_file(cgroups, group, "pids", "pids.current"))
    return None if maximum is None or current is None else max(0, maximum - current)


def set_hugepages(cgroups: Cgroups, group: str, limits: dict[str, int | None]) -> None:
    """Limit huge pages, those in use and those reserved; OSError if the kernel refuses. Idempotent."""
    version, unlimited = ("max", "max") if cgroups.pure_v2 else ("limit_in_bytes", "-1")
    for size, limit in limits.items():
        # A limit of usage alone lets mmap(2) reserve what it may not use: the page fault then ends in SIGBUS,
        # where a limit of reservations makes mmap fail (cgroup-v1/hugetlb.rst).
        for kind in ("", "rsvd."):
            file = _file(cgroups, group, "hugetlb", f"hugetlb.{size}.{kind}{version}")
            _write(file, limit, unlimited=unlimited)


def set_memory_protection(cgroups: Cgroups, group: str, minimum: int, low: int) -> None:
    """Set `memory.min` and `memory.low`; nothing on version 1. OSError if the kernel refuses. Idempotent."""
    if cgroups.pure_v2:
        directory = cgroups.directory(group, "memory")
        _write(directory / "memory.min", minimum)
        _write(directory / "memory.low", low)


def set_memory(cgroups: Cgroups, group: str, limit: int | None) -> None:
    """Limit a group's memory; OSError (EBUSY) if version 1 cannot reclaim down to it. Idempotent."""
    if cgroups.pure_v2:
        _write(cgroups.directory(group, "memory") / "memory.max", limit)
    else:
        _write(_file(cgroups, group, "memory", "memory.limit_in_bytes"), limit, unlimited="-1")


def set_cpu_weight(cgroups: Cgroups, group: str, weight: int | None) -> None:
    """Set a weight in the unit of `Limits.cpu_weight`. OSError if the kernel refuses. Idempotent."""
    if cgroups.pure_v2:
        _write(cgroups.directory(group, "cpu") / "cpu.weight", weight or WEIGHT_DEFAULT)
    else:
        _write(_file(cgroups, group, "cpu", "cpu.shares"), weight or SHARES_DEFAULT)


def _file(cgroups: Cgroups, group: str, controller: str, name: str) -> Path:
    """A controller's file; one that does not exist if the machine lacks the controller."""
    if not cgroups.pure_v2 and controller not in cgroups.v1:
        return Path("/nonexistent") / name
    return cgroups.directory(group, controller) / name


def _hugepages(directory: Path, kind: str) -> dict[str, int | None]:
    return {size: _number(path) for size, path in _hugepage_files(directory, kind)}


def _hugepage_files(directory: Path, kind: str) -> Iterator[tuple[str, Path]]:
    for path in sorted(directory.glob(f"hugetlb.*.{kind}")):
        size = path.name.removeprefix("hugetlb.").removesuffix(f".{kind}")
        if "." not in size:  # `2MB.rsvd` is the limit of reservations
            yield size, path


def _number(path: Path) -> int | None:
    """The first number in a file. None for no limit (`max`, -1 or a number near 2^63), or if there is no file."""
    try:
        word = path.read_text().split()[0]
    except (OSError, IndexError):
        return None
    number = -1 if word == "max" else int(word)
    return number if 0 <= number < UNLIMITED else None


def _write(path: Path, value: int | None, *, unlimited: str = "max") -> None:
    """Write a limit. FileNotFoundError if the machine cannot set it, unless that changes nothing (None, 0)."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    except FileNotFoundError:
        if value:
            raise
        return
    try:
        os.write(fd, (unlimited if value is None else str(value)).encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(fd)
