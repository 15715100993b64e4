# SPDX-License-Identifier: Apache-2.0
"""A pod's resources become the size of its CT."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvecri.model import Resources
from pvecri.proxmox import sizing
from pvecri.proxmox.sizing import MIB, CtSize, ct_size

NONE = Resources()
GIB = 1 << 30


def memory_high(memory_mib: int) -> float:
    """What Proxmox makes of a CT's memory, in MiB."""
    return memory_mib * 1016 / 1024 if memory_mib < 16 * 1024 else memory_mib - 128


def test_a_pod_without_limits_may_use_the_node() -> None:
    assert ct_size(NONE, NONE, node_memory=8 * GIB, overhead_mib=32) == CtSize(memory_mib=8192)


def test_a_pod_with_limits_gets_them_and_its_overhead() -> None:
    resources = Resources(memory_limit=256 * MIB, cpu_quota=50_000, cpu_period=100_000, cpu_shares=512)
    overhead = Resources(memory_limit=64 * MIB, cpu_quota=25_000, cpu_period=100_000, cpu_shares=256)

    size = ct_size(resources, overhead, node_memory=8 * GIB, overhead_mib=32)

    assert size == CtSize(memory_mib=355, cpulimit=0.75, cpuunits=30)


@given(limit=st.integers(1, 64 * GIB), overhead_mib=st.integers(0, 512))
def test_memory_high_covers_the_pods_limit_and_no_less_memory_would(limit: int, overhead_mib: int) -> None:
    memory = sizing.memory_mib(Resources(memory_limit=limit), NONE, node_memory=GIB, overhead_mib=overhead_mib)

    wanted = limit / MIB + overhead_mib
    assert memory_high(memory) >= wanted
    assert memory == sizing.MEMORY_MIN_MIB or memory_high(memory - 1) < wanted + 1


@pytest.mark.parametrize("limit", [0, -1, (1 << 63) - 4096, (1 << 63) - 1])
def test_no_memory_limit_is_the_nodes_memory(limit: int) -> None:
    """-1 and the numbers near 2^63 are what cgroups have for no limit; a kubelet sends them in a resize."""
    size = ct_size(Resources(memory_limit=limit), NONE, node_memory=8 * GIB, overhead_mib=32)
    assert size == CtSize(memory_mib=8192)


@pytest.mark.parametrize(("swap", "expected"), [(None, 1024), (0, 0), (1, 1), (3 * GIB, 3072)])
def test_swap_that_the_pod_may_use_takes_the_place_of_what_resources_say(swap: int | None, expected: int) -> None:
    resources = Resources(memory_limit=GIB, memory_swap_limit=2 * GIB)
    assert ct_size(resources, NONE, node_memory=8 * GIB, overhead_mib=0, swap=swap).swap_mib == expected


def test_a_ct_has_at_least_sixteen_mib() -> None:
    assert sizing.memory_mib(Resources(memory_limit=1), NONE, node_memory=GIB, overhead_mib=0) == 16
    assert sizing.memory_mib(NONE, NONE, node_memory=1, overhead_mib=0) == 16


@pytest.mark.parametrize(
    ("memory", "swap", "expected"),
    [(0, 0, 0), (GIB, 0, 0), (GIB, GIB, 0), (GIB, GIB + 1, 1), (GIB, 2 * GIB, 1024), (0, GIB, 0), (GIB, -1, 0)],
)
def test_swap_is_what_exceeds_the_memory(memory: int, swap: int, expected: int) -> None:
    assert sizing.swap_mib(Resources(memory_limit=memory, memory_swap_limit=swap)) == expected


@pytest.mark.parametrize(
    ("quota", "period", "expected"),
    [
        (0, 0, 0.0),
        (-1, 100_000, 0.0),
        (50_000, 100_000, 0.5),
        (100_000, 0, 1.0),
        (1_000, 100_000, 0.01),
        (33_333, 100_000, 0.34),
        (1_000, 1_000_000, 0.01),
        (10**12, 100_000, 8192.0),
    ],
)
def test_cpulimit_is_quota_by_period_in_hundredths_rounded_up(quota: int, period: int, expected: float) -> None:
    assert sizing.cpulimit(Resources(cpu_quota=quota, cpu_period=period), NONE) == expected


@pytest.mark.parametrize(
    ("shares", "expected"), [(0, 100), (1, 1), (2, 1), (1024, 39), (262_144, 10_000), (1 << 30, 10_000)]
)
def test_shares_become_a_weight_as_the_runtimes_convert_them(shares: int, expected: int) -> None:
    assert sizing.cpuunits(Resources(cpu_shares=shares), NONE) == expected
