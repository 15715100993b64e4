# SPDX-License-Identifier: Apache-2.0
"""Names, labels and units of the metrics of pods and containers: cAdvisor's, for which dashboards are written.

The CRI's values are integers, so seconds are whole seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

BASE_LABELS = ("id", "image", "namespace", "pod", "container")
"""The labels of every metric; `container` and `image` are empty for a pod as a whole."""


class MetricKind(Enum):
    """CRI MetricType."""

    COUNTER = "counter"
    GAUGE = "gauge"


@dataclass(frozen=True)
class Descriptor:
    """CRI MetricDescriptor; `labels` come after the base labels."""

    name: str
    help: str
    kind: MetricKind
    labels: tuple[str, ...] = ()


DESCRIPTORS: list[Descriptor] = []
"""All metrics, in the order of this file."""


def _counter(name: str, text: str, *labels: str) -> Descriptor:
    return _add(Descriptor(name, text, MetricKind.COUNTER, labels))


def _gauge(name: str, text: str, *labels: str) -> Descriptor:
    return _add(Descriptor(name, text, MetricKind.GAUGE, labels))


def _add(descriptor: Descriptor) -> Descriptor:
    DESCRIPTORS.append(descriptor)
    return descriptor


LAST_SEEN = _gauge("container_last_seen", "Time of this reading, in seconds since the epoch.")
START_TIME = _gauge("container_start_time_seconds", "Start time, in seconds since the epoch.")

# -- CPU ------------------------------------------------------------------------------------------------------

CPU_USAGE = _counter("container_cpu_usage_seconds_total", "CPU time used, in seconds.", "cpu")
CPU_USER = _counter("container_cpu_user_seconds_total", "CPU time used in user mode, in seconds.")
CPU_SYSTEM = _counter("container_cpu_system_seconds_total", "CPU time used in kernel mode, in seconds.")
CPU_PERIODS = _counter("container_cpu_cfs_periods_total", "Periods in which the CPU quota was enforced.")
CPU_THROTTLED_PERIODS = _counter(
    "container_cpu_cfs_throttled_periods_total", "Periods in which the CPU quota was used up."
)
CPU_THROTTLED = _counter(
    "container_cpu_cfs_throttled_seconds_total", "Time throttled by the CPU quota, in seconds."
)

# -- memory ---------------------------------------------------------------------------------------------------

MEMORY_USAGE = _gauge("container_memory_usage_bytes", "Memory in use, page cache included.")
MEMORY_WORKING_SET = _gauge("container_memory_working_set_bytes", "Memory in use without inactive page cache.")
MEMORY_MAX_USAGE = _gauge("container_memory_max_usage_bytes", "Maximum memory use recorded.")
MEMORY_RSS = _gauge("container_memory_rss", "Anonymous memory, in bytes.")
MEMORY_CACHE = _gauge("container_memory_cache", "Page cache, in bytes.")
MEMORY_MAPPED_FILE = _gauge("container_memory_mapped_file", "Files mapped into memory, in bytes.")
MEMORY_KERNEL = _gauge("container_memory_kernel_usage", "Kernel memory, in bytes.")
MEMORY_SWAP = _gauge("container_memory_swap", "Swap in use, in bytes.")
MEMORY_LIMIT_HITS = _counter("container_memory_failcnt", "Number of times the memory limit was hit.")
MEMORY_FAULTS = _counter("container_memory_failures_total", "Page faults.", "failure_type", "scope")
OOM_EVENTS = _counter("container_oom_events_total", "Processes killed by the OOM killer.")

HUGETLB_USAGE = _gauge("container_hugetlb_usage_bytes", "Huge pages in use.", "pagesize")
HUGETLB_MAX_USAGE = _gauge("container_hugetlb_max_usage_bytes", "Maximum huge page use recorded.", "pagesize")

# -- pressure -------------------------------------------------------------------------------------------------

CPU_WAITING = _counter(
    "container_pressure_cpu_waiting_seconds_total", "Time in which some task waited for a CPU, in seconds."
)
CPU_STALLED = _counter(
    "container_pressure_cpu_stalled_seconds_total", "Time in which all tasks waited for a CPU, in seconds."
)
MEMORY_WAITING = _counter(
    "container_pressure_memory_waiting_seconds_total", "Time in which some task waited for memory, in seconds."
)
MEMORY_STALLED = _counter(
    "container_pressure_memory_stalled_seconds_total", "Time in which all tasks waited for memory, in seconds."
)
IO_WAITING = _counter(
    "container_pressure_io_waiting_seconds_total", "Time in which some task waited for I/O, in seconds."
)
IO_STALLED = _counter(
    "container_pressure_io_stalled_seconds_total", "Time in which all tasks waited for I/O, in seconds."
)

# -- block devices and filesystems ----------------------------------------------------------------------------

FS_READ_BYTES = _counter("container_fs_reads_bytes_total", "Bytes read from a block device.", "device")
FS_READS = _counter("container_fs_reads_total", "Reads from a block device.", "device")
FS_WRITTEN_BYTES = _counter("container_fs_writes_bytes_total", "Bytes written to a block device.", "device")
FS_WRITES = _counter("container_fs_writes_total", "Writes to a block device.", "device")
BLKIO_USAGE = _counter(
    "container_blkio_device_usage_total",
    "Bytes read from or written to a block device.",
    *("device", "major", "minor", "operation"),
)
FS_USAGE = _gauge("container_fs_usage_bytes", "What the container has written and keeps.", "device")
FS_LIMIT = _gauge("container_fs_limit_bytes", "The size of the filesystem with the writable layer.", "device")
FS_INODES_FREE = _gauge("container_fs_inodes_free", "Free inodes of that filesystem.", "device")
FS_INODES = _gauge("container_fs_inodes_total", "Inodes of that filesystem.", "device")

# -- network --------------------------------------------------------------------------------------------------

RECEIVED_BYTES = _counter("container_network_receive_bytes_total", "Bytes received.", "interface")
RECEIVED_PACKETS = _counter("container_network_receive_packets_total", "Packets received.", "interface")
RECEIVED_DROPPED = _counter(
    "container_network_receive_packets_dropped_total", "Packets dropped on their way in.", "interface"
)
RECEIVED_ERRORS = _counter("container_network_receive_errors_total", "Faulty packets received.", "interface")
SENT_BYTES = _counter("container_network_transmit_bytes_total", "Bytes sent.", "interface")
SENT_PACKETS = _counter("container_network_transmit_packets_total", "Packets sent.", "interface")
SENT_DROPPED = _counter(
    "container_network_transmit_packets_dropped_total", "Packets dropped on their way out.", "interface"
)
SENT_ERRORS = _counter("container_network_transmit_errors_total", "Packets that could not be sent.", "interface")

# -- processes ------------------------------------------------------------------------------------------------

PROCESSES = _gauge("container_processes", "Processes.")
THREADS = _gauge("container_threads", "Processes and threads.")
THREADS_MAX = _gauge("container_threads_max", "The limit of processes and threads; 0 is no limit.")
FILE_DESCRIPTORS = _gauge("container_file_descriptors", "Open file descriptors of all processes.")
SOCKETS = _gauge("container_sockets", "Those of them that are sockets.")
ULIMITS = _gauge("container_ulimits_soft", "Soft limits of the container's first process.", "ulimit")

# -- limits of the pod's spec ---------------------------------------------------------------------------------

SPEC_CPU_PERIOD = _gauge("container_spec_cpu_period", "The CPU period, in microseconds.")
SPEC_CPU_QUOTA = _gauge("container_spec_cpu_quota", "CPU time in a period, in microseconds.")
SPEC_CPU_SHARES = _gauge("container_spec_cpu_shares", "The CPU weight, 1024 for a core.")
SPEC_MEMORY_LIMIT = _gauge("container_spec_memory_limit_bytes", "The memory limit; 0 is no limit.")
SPEC_MEMORY_RESERVATION = _gauge("container_spec_memory_reservation_limit_bytes", "Memory that is protected.")
SPEC_MEMORY_SWAP_LIMIT = _gauge(
    "container_spec_memory_swap_limit_bytes", "The limit of memory and swap together; 0 is no limit."
)
