# SPDX-License-Identifier: Apache-2.0
"""Metrics have cadvisor's names, units and labels, and what is not known has none."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from pvecri.linux.accounting import Cpu, DeviceIo, Memory, Pressure, Stall
from pvecri.linux.filesystems import Filesystem
from pvecri.linux.interfaces import Interface, Traffic
from pvecri.model import FilesystemUsage, Resources
from pvecri.pods.usage import cadvisor, stats
from pvecri.pods.usage import cadvisor_names as names
from pvecri.pods.usage.cadvisor import Sample

SECOND = 1_000_000_000
MEMORY = Memory(
    usage=200,
    limit=None,
    rss=100,
    cache=80,
    mapped_file=20,
    inactive_file=30,
    page_faults=11,
    major_page_faults=1,
    own_page_faults=2,
    own_major_page_faults=0,
)


def shown(samples: Iterable[Sample]) -> dict[tuple[str, ...], int]:
    """Values by name and labels; there is one for each."""
    found = [((sample.descriptor.name, *sample.labels), sample.value) for sample in samples]
    assert len(dict(found)) == len(found)
    return dict(found)


def test_metric_names_are_unique_and_have_help() -> None:
    assert len({each.name for each in names.DESCRIPTORS}) == len(names.DESCRIPTORS)
    assert all(each.name.startswith("container_") and each.help for each in names.DESCRIPTORS)


def test_the_monitoring_page_names_every_metric_and_its_labels() -> None:
    page = Path(__file__).resolve().parents[3] / "docs/monitoring.md"
    rows = [line.split("|")[1:3] for line in page.read_text().splitlines() if line.startswith("| `container_")]
    documented = {
        name: tuple(re.findall(r"`(\w+)`", re.sub(r"\(.*?\)", "", labels)))
        for written, labels in rows
        for pattern in re.findall(r"`(\S+)`", written)
        for name in expand(pattern)
    }
    assert documented == {each.name: each.labels for each in names.DESCRIPTORS}


def expand(pattern: str) -> list[str]:
    """The names that `a_{b,c}_{d,e}` stands for."""
    parts = [part.strip("{}").split(",") for part in re.split(r"(\{.*?\})", pattern)]
    return ["".join(choice) for choice in itertools.product(*parts)]


def test_every_total_is_a_counter() -> None:
    totals = {each.name for each in names.DESCRIPTORS if each.name.endswith("_total")}
    counters = {each.name for each in names.DESCRIPTORS if each.kind is names.MetricKind.COUNTER}
    assert counters - totals == {"container_memory_failcnt"}
    assert totals - counters == {"container_fs_inodes_total"}


def test_cpu_times_are_whole_seconds() -> None:
    cpu = Cpu(usage=7_900_000_000, user=5 * SECOND, system=2 * SECOND, periods=9, throttled_periods=2)
    assert shown(cadvisor.cpu_samples(cpu)) == {
        ("container_cpu_usage_seconds_total", "total"): 7,
        ("container_cpu_user_seconds_total",): 5,
        ("container_cpu_system_seconds_total",): 2,
        ("container_cpu_cfs_periods_total",): 9,
        ("container_cpu_cfs_throttled_periods_total",): 2,
    }


def test_unaccounted_memory_values_have_no_sample() -> None:
    assert shown(cadvisor.memory_samples(MEMORY)) == {
        ("container_memory_usage_bytes",): 200,
        ("container_memory_working_set_bytes",): 170,
        ("container_memory_rss",): 100,
        ("container_memory_cache",): 80,
        ("container_memory_mapped_file",): 20,
        ("container_memory_failures_total", "pgfault", "container"): 2,
        ("container_memory_failures_total", "pgfault", "hierarchy"): 11,
        ("container_memory_failures_total", "pgmajfault", "container"): 0,
        ("container_memory_failures_total", "pgmajfault", "hierarchy"): 1,
    }


def test_psi_some_is_waiting_and_full_is_stalled() -> None:
    pressure = Pressure(Stall(3 * SECOND, 0, 0, 0), Stall(2 * SECOND, 0, 0, 0))
    assert shown(cadvisor.pressure_samples(pressure, names.IO_WAITING, names.IO_STALLED)) == {
        ("container_pressure_io_waiting_seconds_total",): 3,
        ("container_pressure_io_stalled_seconds_total",): 2,
    }


def test_block_devices_have_samples_of_their_own() -> None:
    io = DeviceIo(8, 0, read_bytes=4096, written_bytes=8192, reads=1, writes=2)
    assert shown(cadvisor.io_samples(io, "/dev/sda")) == {
        ("container_fs_reads_bytes_total", "/dev/sda"): 4096,
        ("container_fs_reads_total", "/dev/sda"): 1,
        ("container_fs_writes_bytes_total", "/dev/sda"): 8192,
        ("container_fs_writes_total", "/dev/sda"): 2,
        ("container_blkio_device_usage_total", "/dev/sda", "8", "0", "Read"): 4096,
        ("container_blkio_device_usage_total", "/dev/sda", "8", "0", "Write"): 8192,
    }


def test_every_interface_has_its_own_counters() -> None:
    interface = Interface("eth0", Traffic(1, 2, 3, 4), Traffic(5, 6, 7, 8))
    assert shown(cadvisor.network_samples(interface)) == {
        ("container_network_receive_bytes_total", "eth0"): 1,
        ("container_network_receive_packets_total", "eth0"): 2,
        ("container_network_receive_errors_total", "eth0"): 3,
        ("container_network_receive_packets_dropped_total", "eth0"): 4,
        ("container_network_transmit_bytes_total", "eth0"): 5,
        ("container_network_transmit_packets_total", "eth0"): 6,
        ("container_network_transmit_errors_total", "eth0"): 7,
        ("container_network_transmit_packets_dropped_total", "eth0"): 8,
    }


def test_the_writable_layer_carries_the_time_of_its_count() -> None:
    layer = FilesystemUsage(mountpoint="/x", used_bytes=5, inodes_used=1, timestamp=42)
    filesystem = Filesystem(device="/dev/sda1", size=100, inodes=20, inodes_free=10)
    samples = list(cadvisor.layer_samples(layer, filesystem))
    assert [(each.descriptor.name, each.value, each.time) for each in samples] == [
        ("container_fs_usage_bytes", 5, 42),
        ("container_fs_limit_bytes", 100, 0),
        ("container_fs_inodes_total", 20, 0),
        ("container_fs_inodes_free", 10, 0),
    ]


def test_a_container_without_limits_has_the_memory_limit_0_and_no_cpu_quota() -> None:
    assert shown(cadvisor.spec_samples(Resources(memory_swap_limit=-1))) == {
        ("container_spec_memory_limit_bytes",): 0,
        ("container_spec_memory_swap_limit_bytes",): 0,
        ("container_spec_memory_reservation_limit_bytes",): 0,
    }


def test_spec_samples_are_the_requested_limits() -> None:
    resources = Resources(
        cpu_period=100_000,
        cpu_quota=20_000,
        cpu_shares=512,
        memory_limit=64,
        memory_swap_limit=128,
        unified={"memory.min": "32"},
    )
    assert shown(cadvisor.spec_samples(resources)) == {
        ("container_spec_memory_limit_bytes",): 64,
        ("container_spec_memory_swap_limit_bytes",): 128,
        ("container_spec_memory_reservation_limit_bytes",): 32,
        ("container_spec_cpu_period",): 100_000,
        ("container_spec_cpu_quota",): 20_000,
        ("container_spec_cpu_shares",): 512,
    }


@pytest.mark.parametrize(
    ("used", "limit", "total", "available"),
    [(None, None, 100, None), (30, None, 100, 70), (30, 50, 100, 20), (30, 500, 100, 70), (5, 0, 0, 0)],
)
def test_available_swap_is_bounded_by_limit_and_node(
    used: int | None, limit: int | None, total: int, available: int | None
) -> None:
    memory = Memory(
        usage=0,
        limit=None,
        rss=0,
        cache=0,
        mapped_file=0,
        inactive_file=0,
        page_faults=0,
        major_page_faults=0,
        own_page_faults=0,
        own_major_page_faults=0,
        swap=used,
        swap_limit=limit,
    )
    assert stats.swap_available(memory, total) == available


def test_a_network_always_has_a_default_interface() -> None:
    other, usual = (Interface(name, Traffic(1, 1, 0, 0), Traffic(1, 1, 0, 0)) for name in ("net1", "eth0"))
    assert stats.network(1, [other, usual]).interfaces == (usual, other)
    assert stats.network(1, [other]).default is other
