# SPDX-License-Identifier: Apache-2.0
"""The kernel's counters read the same from both versions of cgroups."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pvecri.linux import interfaces
from pvecri.linux.accounting import (
    Accounting,
    Cpu,
    DeviceIo,
    Memory,
    Pressure,
    Stall,
    parse_blkio,
    parse_io_stat,
    parse_pressure,
)
from pvecri.linux.cgroups import Cgroups
from pvecri.linux.interfaces import Interface, Traffic

GROUP = "/lxc/105"
NO_LIMIT_V1 = 9223372036854771712

V2 = {
    "cpu.stat": "usage_usec 7000\nuser_usec 4000\nsystem_usec 3000\n"
    "nr_periods 9\nnr_throttled 2\nthrottled_usec 5\n",
    "memory.stat": "anon 100\nfile 80\nkernel 7\nfile_mapped 20\ninactive_file 30\npgfault 11\npgmajfault 1\n",
    "memory.current": "200\n",
    "memory.max": "1000\n",
    "memory.peak": "400\n",
    "memory.swap.current": "5\n",
    "memory.swap.max": "max\n",
    "memory.events": "low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\n",
    "pids.current": "4\n",
    "pids.max": "max\n",
}
V1 = {
    "cpuacct/cpuacct.usage": "7000000\n",
    "cpuacct/cpuacct.usage_user": "4000000\n",
    "cpuacct/cpuacct.usage_sys": "3000000\n",
    "cpu/cpu.stat": "nr_periods 9\nnr_throttled 2\nthrottled_time 5000\n",
    "memory/memory.stat": "pgfault 2\npgmajfault 0\ntotal_cache 80\ntotal_rss 100\ntotal_mapped_file 20\n"
    "total_swap 5\ntotal_pgfault 11\ntotal_pgmajfault 1\ntotal_inactive_file 30\n",
    "memory/memory.usage_in_bytes": "200\n",
    "memory/memory.limit_in_bytes": "1000\n",
    "memory/memory.memsw.limit_in_bytes": f"{NO_LIMIT_V1}\n",
    "memory/memory.max_usage_in_bytes": "400\n",
    "memory/memory.kmem.usage_in_bytes": "7\n",
    "memory/memory.failcnt": "3\n",
    "memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
    "pids/pids.current": "4\n",
    "pids/pids.max": "max\n",
}


def write(root: Path, files: dict[str, str]) -> None:
    """A group's files; in version 1 each below its controller's own tree."""
    for name, text in files.items():
        controller, _, file = name.rpartition("/")
        path = root / controller / GROUP.lstrip("/") / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture(params=["v1", "v2"])
def accounting(request: pytest.FixtureRequest, tmp_path: Path) -> Accounting:
    if request.param == "v2":
        write(tmp_path, V2)
        return Accounting(Cgroups(v2=tmp_path, v1={}))
    write(tmp_path, V1)
    controllers = ("cpu", "cpuacct", "memory", "pids", "blkio")
    return Accounting(Cgroups(v2=None, v1={name: tmp_path / name for name in controllers}))


def test_cpu_usage_is_in_nanoseconds(accounting: Accounting) -> None:
    assert accounting.cpu_time(GROUP) == 7_000_000
    assert accounting.cpu(GROUP) == Cpu(
        usage=7_000_000, user=4_000_000, system=3_000_000, periods=9, throttled_periods=2, throttled=5000
    )


def test_memory_limit_is_none_if_unlimited(accounting: Accounting) -> None:
    memory = accounting.memory(GROUP, details=True)
    assert memory is not None
    assert (memory.usage, memory.limit, memory.working_set, memory.rss) == (200, 1000, 170, 100)
    assert (memory.cache, memory.mapped_file, memory.kernel, memory.max_usage) == (80, 20, 7, 400)
    assert (memory.swap, memory.swap_limit) == (5, None)
    assert (memory.page_faults, memory.major_page_faults) == (11, 1)
    assert (memory.limit_hits, memory.oom_kills) == (3, 1)


def test_memory_without_details_needs_no_file_of_them(accounting: Accounting, tmp_path: Path) -> None:
    whole = accounting.memory(GROUP, details=True)
    assert whole is not None
    needed = {"memory.stat", "memory.current", "memory.max", "memory.swap.current", "memory.swap.max"}
    needed |= {"memory.usage_in_bytes", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"}
    for path in tmp_path.rglob("memory.*"):
        if path.name not in needed:
            path.unlink()
    without = replace(whole, max_usage=None, kernel=None, limit_hits=None, oom_kills=None)
    assert accounting.memory(GROUP) == without


def test_unlimited_pids_are_zero(accounting: Accounting) -> None:
    assert (accounting.tasks(GROUP), accounting.tasks_max(GROUP)) == (4, 0)


def test_removed_group_has_no_counters(accounting: Accounting) -> None:
    gone = "/lxc/106"
    assert accounting.cpu_time(gone) is None
    assert accounting.cpu(gone) is None
    assert accounting.memory(gone) is None
    assert accounting.pressure(gone, "cpu") is None
    assert accounting.tasks(gone) is None
    assert accounting.io(gone) == []


def test_v1_swap_limit_excludes_memory(tmp_path: Path) -> None:
    write(tmp_path, {**V1, "memory/memory.memsw.limit_in_bytes": "1500\n"})
    memory = Accounting(Cgroups(v2=None, v1={"memory": tmp_path / "memory"})).memory(GROUP)
    assert memory is not None
    assert memory.swap_limit == 500


def test_working_set_is_never_negative() -> None:
    memory = Memory(
        usage=10,
        limit=None,
        rss=0,
        cache=0,
        mapped_file=0,
        inactive_file=20,
        page_faults=0,
        major_page_faults=0,
        own_page_faults=0,
        own_major_page_faults=0,
    )
    assert memory.working_set == 0


def test_pressure_totals_are_nanoseconds() -> None:
    text = (
        b"some avg10=1.50 avg60=0.20 avg300=0.03 total=13063\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=6482\n"
    )
    assert parse_pressure(text) == Pressure(Stall(13_063_000, 1.5, 0.2, 0.03), Stall(6_482_000, 0, 0, 0))


@pytest.mark.parametrize("text", [b"", b"full avg10=0.00 avg60=0.00 avg300=0.00 total=1\n"])
def test_pressure_is_none_without_psi(text: bytes) -> None:
    assert parse_pressure(text) is None


def test_cpu_pressure_of_older_kernels_has_no_full_line() -> None:
    pressure = parse_pressure(b"some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n")
    assert pressure is not None
    assert pressure.full is None


def test_block_io_is_the_same_on_v1_and_v2() -> None:
    expected = [DeviceIo(8, 0, read_bytes=4096, written_bytes=8192, reads=1, writes=2)]
    v2 = b"8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n7:0 \n"
    sizes = b"8:0 Read 4096\n8:0 Write 8192\n8:0 Sync 0\nTotal 12288\n"
    assert parse_io_stat(v2) == expected
    assert parse_blkio(sizes, b"8:0 Read 1\n8:0 Write 2\nTotal 3\n") == expected
    assert parse_blkio(b"Total 0\n", b"Total 0\n") == []


def test_interfaces_exclude_loopback() -> None:
    text = (
        "Inter-|   Receive                               |  Transmit\n"
        " face |bytes    packets errs drop fifo frame compr multicast|bytes    packets errs drop fifo colls\n"
        "    lo:  100       1    0    0    0     0   0         0      100       1    0    0    0     0 0 0\n"
        "  eth0: 1806      21    1    2    0     0   0         0      822      11    3    4    0     0 0 0\n"
    )
    assert interfaces.parse(text) == (Interface("eth0", Traffic(1806, 21, 1, 2), Traffic(822, 11, 3, 4)),)
