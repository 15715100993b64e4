# SPDX-License-Identifier: Apache-2.0
"""The metrics of every READY pod and its running containers (CRI ListPodSandboxMetrics), read on each request.

A value that the kernel does not account for (huge pages, pressure) and an unset limit have no sample, not a 0.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pvecri.linux import filesystems, processes
from pvecri.linux.accounting import Accounting, Cpu, DeviceIo, Memory, Pressure
from pvecri.linux.cgroups import Cgroups
from pvecri.linux.filesystems import Filesystem
from pvecri.linux.interfaces import Interface
from pvecri.model import Container, ContainerId, FilesystemUsage, Resources, SandboxId
from pvecri.pods.registry import ContainerEntry, PodEntry, Registry
from pvecri.pods.usage import cadvisor_names as names
from pvecri.pods.usage.cadvisor_names import Descriptor
from pvecri.pods.usage.stats import Network, is_ready, is_running, read_networks
from pvecri.pods.usage.writable_layers import WritableLayers

SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of a metric; `time` is nanoseconds since the epoch, 0 for now."""

    descriptor: Descriptor
    value: int
    labels: tuple[str, ...] = ()
    time: int = 0


@dataclass(frozen=True, slots=True)
class ContainerMetrics:
    """The metrics of a container; `base` are the values of BASE_LABELS, for all samples."""

    id: ContainerId
    base: tuple[str, ...]
    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True)
class PodMetrics:
    """The metrics of a pod, from its CT's cgroup and its network namespace, and those of its containers."""

    id: SandboxId
    base: tuple[str, ...]
    samples: tuple[Sample, ...]
    containers: tuple[ContainerMetrics, ...]


class Metrics:
    """Reads all pods in one worker thread call."""

    def __init__(self, registry: Registry, cgroups: Cgroups, layers: WritableLayers) -> None:
        self._registry = registry
        self._cgroups = cgroups
        self._accounting = Accounting(cgroups)
        self._layers = layers

    async def collect(self) -> list[PodMetrics]:
        """The metrics of every READY pod, oldest first."""
        pods = sorted(filter(is_ready, self._registry.pods()), key=lambda pod: pod.value.created_at)
        containers = {pod.id: [each for each in pod.containers.values() if is_running(each)] for pod in pods}
        every = [each for inside in containers.values() for each in inside]
        found = await asyncio.gather(*(self._layers.usage(each.id) for each in every))
        layers = {each.id: layer for each, layer in zip(every, found, strict=True)}
        return await asyncio.to_thread(self._collect, pods, containers, layers)

    def _collect(
        self,
        pods: Sequence[PodEntry],
        containers: Mapping[SandboxId, Sequence[ContainerEntry]],
        layers: Mapping[ContainerId, FilesystemUsage | None],
    ) -> list[PodMetrics]:
        networks = read_networks(pods)
        return [
            PodMetrics(
                id=pod.id,
                base=base_labels(pod, None),
                samples=tuple(self._of_pod(pod, networks.get(pod.id))),
                containers=tuple(self._of_container(pod, each, layers[each.id]) for each in containers[pod.id]),
            )
            for pod in pods
        ]

    def _of_pod(self, pod: PodEntry, network: Network | None) -> Iterator[Sample]:
        yield from self._of_group(pod.cgroups.ct)
        yield Sample(names.START_TIME, pod.value.created_at // SECOND)
        for interface in network.interfaces if network else ():
            yield from network_samples(interface)

    def _of_container(
        self, pod: PodEntry, container: ContainerEntry, layer: FilesystemUsage | None
    ) -> ContainerMetrics:
        group = pod.cgroups.container(container.id)
        samples = [
            *self._of_group(group),
            *self._process_samples(group, container),
            *spec_samples(container.value.config.resources),
            *(layer_samples(layer, filesystems.filesystem(Path(layer.mountpoint))) if layer else ()),
            Sample(names.START_TIME, container.value.started_at // SECOND),
        ]
        return ContainerMetrics(container.id, base_labels(pod, container.value), tuple(samples))

    def _of_group(self, group: str) -> Iterator[Sample]:
        """What the kernel accounts for in a cgroup."""
        cpu, memory = self._accounting.cpu(group), self._accounting.memory(group, details=True)
        yield Sample(names.LAST_SEEN, int(time.time()))
        if cpu is not None:
            yield from cpu_samples(cpu)
        if memory is not None:
            yield from memory_samples(memory)
        for resource, waiting, stalled in PRESSURES:
            pressure = self._accounting.pressure(group, resource)
            if pressure is not None:
                yield from pressure_samples(pressure, waiting, stalled)
        for device in self._accounting.io(group):
            yield from io_samples(device, filesystems.block_device(device.major, device.minor))
        for pages in self._accounting.hugepages(group):
            yield Sample(names.HUGETLB_USAGE, pages.usage, (pages.size,))
            yield from known((names.HUGETLB_MAX_USAGE, pages.max_usage), labels=(pages.size,))
        tasks, most = self._accounting.tasks(group), self._accounting.tasks_max(group)
        yield from known((names.THREADS, tasks), (names.THREADS_MAX, most))

    def _process_samples(self, group: str, container: ContainerEntry) -> Iterator[Sample]:
        pids = self._cgroups.processes(group)
        counts = [processes.open_files(pid) for pid in pids]
        yield Sample(names.PROCESSES, len(pids))
        yield Sample(names.FILE_DESCRIPTORS, sum(files for files, _ in counts))
        yield Sample(names.SOCKETS, sum(sockets for _, sockets in counts))
        first = container.process
        limit = processes.open_files_limit(first.pid) if first is not None else None
        yield from known((names.ULIMITS, limit), labels=("max_open_files",))


PRESSURES = (
    ("cpu", names.CPU_WAITING, names.CPU_STALLED),
    ("memory", names.MEMORY_WAITING, names.MEMORY_STALLED),
    ("io", names.IO_WAITING, names.IO_STALLED),
)
"""Each resource with the metrics of its PSI totals: `some` and `full`."""


def base_labels(pod: PodEntry, container: Container | None) -> tuple[str, ...]:
    """The values of BASE_LABELS, for a container or for the pod as a whole."""
    metadata = pod.value.config.metadata
    if container is None:
        return (pod.id, "", metadata.namespace, metadata.name, "")
    # A kubelet's `image` is the id that PullImage returned.
    image = container.config.user_specified_image or container.config.image
    return (container.id, image, metadata.namespace, metadata.name, container.config.metadata.name)


def known(*values: tuple[Descriptor, int | None], labels: tuple[str, ...] = ()) -> Iterator[Sample]:
    """A sample for each value that is not None."""
    for descriptor, value in values:
        if value is not None:
            yield Sample(descriptor, value, labels)


def seconds(nanoseconds: int | None) -> int | None:
    """Whole seconds; None stays None."""
    return None if nanoseconds is None else nanoseconds // SECOND


def cpu_samples(cpu: Cpu) -> Iterator[Sample]:
    """CPU times, and throttling by the quota."""
    # cAdvisor's label for all CPUs together.
    yield Sample(names.CPU_USAGE, cpu.usage // SECOND, ("total",))
    yield from known(
        (names.CPU_USER, seconds(cpu.user)),
        (names.CPU_SYSTEM, seconds(cpu.system)),
        (names.CPU_PERIODS, cpu.periods),
        (names.CPU_THROTTLED_PERIODS, cpu.throttled_periods),
        (names.CPU_THROTTLED, seconds(cpu.throttled)),
    )


def memory_samples(memory: Memory) -> Iterator[Sample]:
    """Memory and swap, page faults, and events at the limit."""
    yield from known(
        (names.MEMORY_USAGE, memory.usage),
        (names.MEMORY_WORKING_SET, memory.working_set),
        (names.MEMORY_MAX_USAGE, memory.max_usage),
        (names.MEMORY_RSS, memory.rss),
        (names.MEMORY_CACHE, memory.cache),
        (names.MEMORY_MAPPED_FILE, memory.mapped_file),
        (names.MEMORY_KERNEL, memory.kernel),
        (names.MEMORY_SWAP, memory.swap),
        (names.MEMORY_LIMIT_HITS, memory.limit_hits),
        (names.OOM_EVENTS, memory.oom_kills),
    )
    # cAdvisor's scopes: the cgroup alone, and with all cgroups below it.
    yield Sample(names.MEMORY_FAULTS, memory.own_page_faults, ("pgfault", "container"))
    yield Sample(names.MEMORY_FAULTS, memory.page_faults, ("pgfault", "hierarchy"))
    yield Sample(names.MEMORY_FAULTS, memory.own_major_page_faults, ("pgmajfault", "container"))
    yield Sample(names.MEMORY_FAULTS, memory.major_page_faults, ("pgmajfault", "hierarchy"))


def pressure_samples(pressure: Pressure, waiting: Descriptor, stalled: Descriptor) -> Iterator[Sample]:
    """PSI totals of one resource."""
    yield Sample(waiting, pressure.some.total // SECOND)
    if pressure.full is not None:
        yield Sample(stalled, pressure.full.total // SECOND)


def io_samples(io: DeviceIo, device: str) -> Iterator[Sample]:
    """I/O of one block device."""
    yield Sample(names.FS_READ_BYTES, io.read_bytes, (device,))
    yield Sample(names.FS_READS, io.reads, (device,))
    yield Sample(names.FS_WRITTEN_BYTES, io.written_bytes, (device,))
    yield Sample(names.FS_WRITES, io.writes, (device,))
    numbers = (device, str(io.major), str(io.minor))
    yield Sample(names.BLKIO_USAGE, io.read_bytes, (*numbers, "Read"))
    yield Sample(names.BLKIO_USAGE, io.written_bytes, (*numbers, "Write"))


def layer_samples(layer: FilesystemUsage, filesystem: Filesystem) -> Iterator[Sample]:
    """The size of a container's writable layer at the last count, and the filesystem that contains it."""
    labels = (filesystem.device,)
    yield Sample(names.FS_USAGE, layer.used_bytes, labels, layer.timestamp)
    yield Sample(names.FS_LIMIT, filesystem.size, labels)
    yield Sample(names.FS_INODES, filesystem.inodes, labels)
    yield Sample(names.FS_INODES_FREE, filesystem.inodes_free, labels)


def network_samples(interface: Interface) -> Iterator[Sample]:
    """An interface's traffic."""
    received, sent = interface.received, interface.sent
    yield from known(
        (names.RECEIVED_BYTES, received.bytes),
        (names.RECEIVED_PACKETS, received.packets),
        (names.RECEIVED_DROPPED, received.dropped),
        (names.RECEIVED_ERRORS, received.errors),
        (names.SENT_BYTES, sent.bytes),
        (names.SENT_PACKETS, sent.packets),
        (names.SENT_DROPPED, sent.dropped),
        (names.SENT_ERRORS, sent.errors),
        labels=(interface.name,),
    )


def spec_samples(resources: Resources) -> Iterator[Sample]:
    """The container's limits; a memory limit of 0 is none."""
    yield Sample(names.SPEC_MEMORY_LIMIT, max(0, resources.memory_limit))
    yield Sample(names.SPEC_MEMORY_SWAP_LIMIT, max(0, resources.memory_swap_limit))
    # A kubelet with the feature MemoryQoS sends the memory request so.
    protected = resources.unified.get("memory.min", "0")
    yield from known(
        (names.SPEC_MEMORY_RESERVATION, int(protected) if protected.isdecimal() else None),
        (names.SPEC_CPU_PERIOD, resources.cpu_period or None),
        (names.SPEC_CPU_QUOTA, resources.cpu_quota if resources.cpu_quota > 0 else None),
        (names.SPEC_CPU_SHARES, resources.cpu_shares or None),
    )
