# SPDX-License-Identifier: Apache-2.0
"""Limits of control groups, as directories of plain files that have the kernel's names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pvecri.linux import limits
from pvecri.linux.cgroups import Cgroups
from pvecri.linux.limits import Limits

GROUP = "/kubepods/pod1"
NO_LIMIT_V1 = "9223372036854771712"
NO_HUGEPAGE_LIMIT_V1 = "9223372036852678656"

V2_FILES = {
    "memory.max": "max",
    "memory.min": "0",
    "memory.low": "0",
    "memory.swap.max": "max",
    "cpu.max": "max 100000",
    "cpu.weight": "100",
    "pids.max": "max",
    "hugetlb.2MB.max": "max",
    "hugetlb.2MB.rsvd.max": "max",
}
"""A group of version 2 as the kernel makes it."""

V1_FILES = {
    "memory/memory.limit_in_bytes": NO_LIMIT_V1,
    "memory/memory.memsw.limit_in_bytes": NO_LIMIT_V1,
    "cpu/cpu.cfs_quota_us": "-1",
    "cpu/cpu.shares": "1024",
    "pids/pids.max": "max",
    "hugetlb/hugetlb.2MB.limit_in_bytes": NO_HUGEPAGE_LIMIT_V1,
}
"""The same of version 1, by controller."""


def v2(root: Path, **changed: str) -> Cgroups:
    directory = root / GROUP.lstrip("/")
    directory.mkdir(parents=True)
    for name, content in {**V2_FILES, **{key.replace("__", "."): text for key, text in changed.items()}}.items():
        (directory / name).write_text(content + "\n")
    return Cgroups(v2=root, v1={})


def v1(root: Path, **changed: str) -> Cgroups:
    trees = {path.partition("/")[0]: root / path.partition("/")[0] for path in V1_FILES}
    for path, content in V1_FILES.items():
        controller, _, name = path.partition("/")
        directory = trees[controller] / GROUP.lstrip("/")
        directory.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(changed.get(name.replace(".", "__"), content) + "\n")
    return Cgroups(v2=None, v1=trees)


def content(cgroups: Cgroups, controller: str, name: str) -> str:
    return (cgroups.directory(GROUP, controller) / name).read_text().strip()


@pytest.mark.parametrize("machine", [v1, v2])
def test_a_new_group_limits_nothing(tmp_path: Path, machine: Callable[[Path], Cgroups]) -> None:
    assert limits.read(machine(tmp_path), GROUP) == Limits(hugepages={"2MB": None})


@pytest.mark.parametrize("machine", [v1, v2])
def test_a_group_that_does_not_exist_has_no_limits_to_read(
    tmp_path: Path, machine: Callable[[Path], Cgroups]
) -> None:
    assert limits.read(machine(tmp_path), "/kubepods/pod2") is None


def test_limits_of_version_2_are_read(tmp_path: Path) -> None:
    found = limits.read(
        v2(
            tmp_path,
            memory__max="1048576",
            memory__min="4096",
            memory__low="8192",
            memory__swap__max="0",
            cpu__max="50000 100000",
            cpu__weight="39",
            pids__max="100",
            hugetlb__2MB__max="2097152",
        ),
        GROUP,
    )
    assert found == Limits(
        memory=1048576,
        memory_min=4096,
        memory_low=8192,
        swap=0,
        cpu_quota=50000,
        cpu_weight=39,
        pids=100,
        hugepages={"2MB": 2097152},
    )


def test_limits_of_version_1_are_read(tmp_path: Path) -> None:
    found = limits.read(
        v1(
            tmp_path,
            memory__limit_in_bytes="1048576",
            memory__memsw__limit_in_bytes="3145728",
            cpu__cfs_quota_us="50000",
            cpu__shares="512",
            pids__max="100",
            hugetlb__2MB__limit_in_bytes="0",
        ),
        GROUP,
    )
    assert found == Limits(
        memory=1048576, swap=2097152, cpu_quota=50000, cpu_weight=512, pids=100, hugepages={"2MB": 0}
    )


def test_what_a_machine_cannot_limit_reads_as_no_limit(tmp_path: Path) -> None:
    (tmp_path / "pids/kubepods/pod1").mkdir(parents=True)
    assert limits.read(Cgroups(v2=None, v1={"pids": tmp_path / "pids"}), GROUP) == Limits()


def test_limits_of_version_2_are_written_and_lifted(tmp_path: Path) -> None:
    cgroups = v2(tmp_path)
    limits.set_pids(cgroups, GROUP, 100)
    limits.set_memory(cgroups, GROUP, 1048576)
    limits.set_memory_protection(cgroups, GROUP, 4096, 8192)
    limits.set_hugepages(cgroups, GROUP, {"2MB": 0})
    limits.set_cpu_weight(cgroups, GROUP, 39)
    written = {name: content(cgroups, "memory", name) for name in V2_FILES}
    assert written == V2_FILES | {
        "pids.max": "100",
        "memory.max": "1048576",
        "memory.min": "4096",
        "memory.low": "8192",
        "hugetlb.2MB.max": "0",
        "hugetlb.2MB.rsvd.max": "0",
        "cpu.weight": "39",
    }
    limits.set_pids(cgroups, GROUP, None)
    limits.set_cpu_weight(cgroups, GROUP, None)
    assert (content(cgroups, "pids", "pids.max"), content(cgroups, "cpu", "cpu.weight")) == ("max", "100")


def test_no_limit_is_written_in_the_words_of_each_version(tmp_path: Path) -> None:
    old, new = v1(tmp_path / "v1"), v2(tmp_path / "v2")
    for cgroups in (old, new):
        limits.set_memory(cgroups, GROUP, None)
        limits.set_hugepages(cgroups, GROUP, {"2MB": None})
    assert content(old, "memory", "memory.limit_in_bytes") == "-1"
    assert content(old, "hugetlb", "hugetlb.2MB.limit_in_bytes") == "-1"
    assert content(new, "memory", "memory.max") == "max"
    assert content(new, "hugetlb", "hugetlb.2MB.max") == "max"


@pytest.mark.parametrize(("maximum", "current", "left"), [("max", "7", None), ("60", "7", 53), ("60", "61", 0)])
def test_pids_left_are_those_up_to_the_limit(tmp_path: Path, maximum: str, current: str, left: int | None) -> None:
    cgroups = v2(tmp_path, pids__max=maximum, pids__current=current)
    assert limits.pids_left(cgroups, GROUP) == left


def test_a_limit_that_the_machine_cannot_set_is_an_error_and_no_limit_is_none(tmp_path: Path) -> None:
    cgroups = Cgroups(v2=None, v1={"memory": tmp_path})
    limits.set_pids(cgroups, GROUP, None)
    limits.set_hugepages(cgroups, GROUP, {"2MB": 0})
    with pytest.raises(FileNotFoundError, match=r"pids\.max"):
        limits.set_pids(cgroups, GROUP, 100)
