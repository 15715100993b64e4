# SPDX-License-Identifier: AGPL-3.0-or-later
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pvecri_embedded.lxc.cgroup import MIB, CgroupTree, memory_high, parse_cpu_list


@pytest.fixture
def unified(tmp_path: Path) -> CgroupTree:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    (tmp_path / "cpuset.cpus.effective").write_text("0-3\n")
    (tmp_path / "lxc" / "900").mkdir(parents=True)
    return CgroupTree(tmp_path)


@pytest.fixture
def legacy(tmp_path: Path) -> CgroupTree:
    for controller in ("memory", "cpu", "cpuset", "cpuacct", "blkio"):
        (tmp_path / controller / "lxc" / "900").mkdir(parents=True)
    (tmp_path / "memory" / "memory.memsw.limit_in_bytes").touch()
    (tmp_path / "cpuset" / "cpuset.cpus").write_text("0-1\n")
    return CgroupTree(tmp_path)


def values(tree: CgroupTree, config: dict[str, Any]) -> dict[str, str]:
    return {limit.file: limit.value for limit in tree.limits(config)}


def test_limits_on_cgroup_v2_are_those_of_a_proxmox_node(unified: CgroupTree) -> None:
    assert values(unified, {"memory": 96, "swap": 0, "cpulimit": 1, "cpuunits": 50}) == {
        "memory.max": "100663296",
        "memory.high": "99876864",
        "memory.swap.max": "0",
        "cpu.max": "100000 100000",
        "cpu.weight": "50",
    }


def test_ct_without_limits_has_proxmoxs_defaults(unified: CgroupTree) -> None:
    limits = values(unified, {})
    assert limits["memory.max"] == limits["memory.swap.max"] == str(512 * MIB)
    assert (limits["cpu.max"], limits["cpu.weight"]) == ("max 100000", "100")


def test_limits_on_cgroup_v1_are_equivalent(legacy: CgroupTree) -> None:
    assert values(legacy, {"memory": 64, "swap": 32, "cpulimit": 0.5, "cpuunits": 50}) == {
        "memory.limit_in_bytes": str(64 * MIB),
        "memory.memsw.limit_in_bytes": str(96 * MIB),
        "cpu.cfs_period_us": "100000",
        "cpu.cfs_quota_us": "50000",
        "cpu.shares": "512",
    }


@pytest.mark.parametrize(
    ("memory_mib", "high"),
    [
        (96, 99_876_864),
        (16 * 1024 - 1, (16 * 1024 - 1) * MIB * 1016 // 1024),
        (16 * 1024, (16 * 1024 - 128) * MIB),
    ],
)
def test_memory_high_equals_a_proxmox_nodes(memory_mib: int, high: int) -> None:
    assert memory_high(memory_mib) == high


def test_cores_are_spread_over_the_machine_by_vmid(unified: CgroupTree) -> None:
    chosen = [unified.cpuset(2, vmid) for vmid in (100, 101, 103)]
    assert [limit.value for limit in chosen if limit] == ["0,1", "1,2", "0,3"]


@pytest.mark.parametrize("cores", [0, 4, 8])
def test_all_cores_need_no_limit(unified: CgroupTree, cores: int) -> None:
    assert unified.cpuset(cores, 100) is None


def test_usage_is_read_from_cgroup_v2(unified: CgroupTree, tmp_path: Path) -> None:
    ct = tmp_path / "lxc" / "900"
    (ct / "memory.current").write_text("1000\n")
    (ct / "memory.stat").write_text("anon 1\ninactive_file 300\n")
    (ct / "cpu.stat").write_text("usage_usec 5\nuser_usec 1\n")
    (ct / "io.stat").write_text("8:0 rbytes=10 wbytes=20 rios=1\n8:16 rbytes=1 wbytes=2\n")
    usage = unified.usage(900)
    assert (usage.memory, usage.cpu_ns, usage.disk_read, usage.disk_written) == (700, 5000, 11, 22)


def test_usage_of_a_ct_that_is_gone_is_zero(legacy: CgroupTree) -> None:
    usage = legacy.usage(901)
    assert (usage.memory, usage.swap, usage.cpu_ns, usage.disk_read, usage.disk_written) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize(("text", "cpus"), [("0", [0]), ("0-3", [0, 1, 2, 3]), ("0,2-3\n", [0, 2, 3]), ("", [])])
def test_cpu_list_of_the_kernel_is_read(text: str, cpus: list[int]) -> None:
    assert parse_cpu_list(text) == cpus
