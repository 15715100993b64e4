# SPDX-License-Identifier: Apache-2.0
"""Translates statistics, metrics and events into CRI messages. Unknown values are unset, not 0."""

from __future__ import annotations

from collections.abc import Sequence

from pvecri.cri import responses
from pvecri.cri.proto import cri_pb2 as pb
from pvecri.linux.accounting import Pressure, Stall
from pvecri.linux.interfaces import Interface
from pvecri.pods.events import Event, EventKind
from pvecri.pods.usage.cadvisor import PodMetrics, Sample
from pvecri.pods.usage.cadvisor_names import BASE_LABELS, Descriptor, MetricKind
from pvecri.pods.usage.stats import ContainerUsage, Network, PodUsage, Usage

_EVENT_TYPES = {
    EventKind.CREATED: pb.CONTAINER_CREATED_EVENT,
    EventKind.STARTED: pb.CONTAINER_STARTED_EVENT,
    EventKind.STOPPED: pb.CONTAINER_STOPPED_EVENT,
    EventKind.DELETED: pb.CONTAINER_DELETED_EVENT,
}

_METRIC_TYPES = {MetricKind.COUNTER: pb.COUNTER, MetricKind.GAUGE: pb.GAUGE}


def container_stats(value: ContainerUsage) -> pb.ContainerStats:
    """An entry of ListContainerStats."""
    container, usage = value.container, value.usage
    return pb.ContainerStats(
        attributes=pb.ContainerAttributes(
            id=container.id,
            metadata=responses.container_metadata(container),
            labels=container.config.labels,
            annotations=container.config.annotations,
        ),
        cpu=_cpu(usage),
        memory=_memory(usage),
        swap=_swap(usage),
        io=_io(usage),
        writable_layer=None if value.layer is None else responses.filesystem(value.layer),
    )


def pod_stats(value: PodUsage) -> pb.PodSandboxStats:
    """An entry of ListPodSandboxStats; without usage it has only the pod's attributes."""
    sandbox, usage = value.sandbox, value.usage
    attributes = pb.PodSandboxAttributes(
        id=sandbox.id,
        metadata=responses.sandbox_metadata(sandbox.config.metadata),
        labels=sandbox.config.labels,
        annotations=sandbox.config.annotations,
    )
    if usage is None:
        return pb.PodSandboxStats(attributes=attributes)
    return pb.PodSandboxStats(
        attributes=attributes,
        linux=pb.LinuxPodSandboxStats(
            cpu=_cpu(usage),
            memory=_memory(usage),
            network=_network(value.network),
            process=_processes(usage, value.tasks),
            containers=[container_stats(each) for each in value.containers],
            io=_io(usage),
        ),
    )


def event(value: Event) -> pb.ContainerEventResponse:
    """A message of GetContainerEvents."""
    return pb.ContainerEventResponse(
        container_id=value.id,
        container_event_type=_EVENT_TYPES[value.kind],
        created_at=value.time,
        pod_sandbox_status=responses.sandbox_status(value.sandbox),
        containers_statuses=[responses.container_status(each) for each in value.containers],
    )


def metric_descriptor(value: Descriptor) -> pb.MetricDescriptor:
    """An entry of ListMetricDescriptors."""
    return pb.MetricDescriptor(name=value.name, help=value.help, label_keys=(*BASE_LABELS, *value.labels))


def pod_metrics(value: PodMetrics) -> pb.PodSandboxMetrics:
    """An entry of ListPodSandboxMetrics."""
    return pb.PodSandboxMetrics(
        pod_sandbox_id=value.id,
        metrics=_metrics(value.samples, value.base),
        container_metrics=[
            pb.ContainerMetrics(container_id=each.id, metrics=_metrics(each.samples, each.base))
            for each in value.containers
        ],
    )


def _metrics(samples: Sequence[Sample], base: tuple[str, ...]) -> list[pb.Metric]:
    return [
        pb.Metric(
            name=sample.descriptor.name,
            timestamp=sample.time,
            metric_type=_METRIC_TYPES[sample.descriptor.kind],
            label_values=(*base, *sample.labels),
            value=_count(sample.value),
        )
        for sample in samples
    ]


def _cpu(usage: Usage | None) -> pb.CpuUsage | None:
    if usage is None:
        return None
    return pb.CpuUsage(
        timestamp=usage.time,
        usage_core_nano_seconds=_count(usage.cpu_time),
        usage_nano_cores=_count(usage.cpu_rate),
        psi=_pressure(usage.cpu_pressure),
    )


def _memory(usage: Usage | None) -> pb.MemoryUsage | None:
    if usage is None:
        return None
    memory = usage.memory
    return pb.MemoryUsage(
        timestamp=usage.time,
        working_set_bytes=_count(memory.working_set),
        available_bytes=_count(usage.memory_available),
        usage_bytes=_count(memory.usage),
        rss_bytes=_count(memory.rss),
        page_faults=_count(memory.page_faults),
        major_page_faults=_count(memory.major_page_faults),
        psi=_pressure(usage.memory_pressure),
    )


def _swap(usage: Usage | None) -> pb.SwapUsage | None:
    if usage is None or usage.memory.swap is None:
        return None
    return pb.SwapUsage(
        timestamp=usage.time,
        swap_available_bytes=_count(usage.swap_available),
        swap_usage_bytes=_count(usage.memory.swap),
    )


def _io(usage: Usage | None) -> pb.IoUsage | None:
    if usage is None or usage.io_pressure is None:
        return None
    return pb.IoUsage(timestamp=usage.time, psi=_pressure(usage.io_pressure))


def _pressure(value: Pressure | None) -> pb.PsiStats | None:
    # The capitals are cri.proto's.
    return None if value is None else pb.PsiStats(Full=_stall(value.full), Some=_stall(value.some))


def _stall(value: Stall | None) -> pb.PsiData | None:
    if value is None:
        return None
    return pb.PsiData(Total=value.total, Avg10=value.avg10, Avg60=value.avg60, Avg300=value.avg300)


def _processes(usage: Usage, tasks: int | None) -> pb.ProcessUsage | None:
    return None if tasks is None else pb.ProcessUsage(timestamp=usage.time, process_count=_count(tasks))


def _network(value: Network | None) -> pb.NetworkUsage | None:
    if value is None:
        return None
    return pb.NetworkUsage(
        timestamp=value.time,
        default_interface=_interface(value.default),
        interfaces=[_interface(each) for each in value.others],
    )


def _interface(value: Interface) -> pb.NetworkInterfaceUsage:
    return pb.NetworkInterfaceUsage(
        name=value.name,
        rx_bytes=_count(value.received.bytes),
        rx_errors=_count(value.received.errors),
        tx_bytes=_count(value.sent.bytes),
        tx_errors=_count(value.sent.errors),
    )


def _count(value: int | None) -> pb.UInt64Value | None:
    return None if value is None else pb.UInt64Value(value=value)
