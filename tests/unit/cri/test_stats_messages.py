# SPDX-License-Identifier: Apache-2.0
"""What is not known is absent from a message, and not 0."""

from __future__ import annotations

from pvecri.cri import responses_stats
from pvecri.cri.proto import cri_pb2 as pb
from pvecri.linux.accounting import Memory, Pressure, Stall
from pvecri.linux.interfaces import Interface, Traffic
from pvecri.model import (
    Container,
    ContainerConfig,
    ContainerId,
    ContainerMetadata,
    FilesystemUsage,
    ImageId,
    Sandbox,
    SandboxConfig,
    SandboxId,
    SandboxMetadata,
    SandboxPhase,
)
from pvecri.pods.events import Event, EventKind
from pvecri.pods.usage import cadvisor_names as names
from pvecri.pods.usage.cadvisor import ContainerMetrics, PodMetrics, Sample
from pvecri.pods.usage.stats import ContainerUsage, Network, PodUsage, Usage

POD, CONTAINER = SandboxId("p" * 64), ContainerId("c" * 64)
SANDBOX = Sandbox(
    id=POD,
    config=SandboxConfig(
        metadata=SandboxMetadata(name="web", namespace="default", uid="1"), labels={"app": "web"}
    ),
    created_at=1,
    phase=SandboxPhase.READY,
)
MAIN = Container(
    id=CONTAINER,
    sandbox_id=POD,
    config=ContainerConfig(metadata=ContainerMetadata(name="main", attempt=2), image="busybox"),
    image_id=ImageId("i"),
    image_reference="busybox@sha256:1",
    created_at=2,
)
LAYER = FilesystemUsage(mountpoint="/images", used_bytes=4096, inodes_used=2, timestamp=9)
STALL = Stall(total=1000, avg10=1.5, avg60=0.5, avg300=0.25)


def usage(**known: object) -> Usage:
    """Of a group with no limits on a machine that counts as little as possible; `known` is known besides."""
    memory = Memory(
        usage=200,
        limit=1000 if "limit" in known else None,
        rss=100,
        cache=80,
        mapped_file=20,
        inactive_file=30,
        page_faults=11,
        major_page_faults=1,
        own_page_faults=2,
        own_major_page_faults=0,
        swap=5 if "swap" in known else None,
    )
    pressure = Pressure(STALL, None) if "pressure" in known else None
    return Usage(
        time=7,
        cpu_time=3000,
        cpu_rate=500 if "rate" in known else None,
        memory=memory,
        swap_available=95 if "swap" in known else None,
        cpu_pressure=pressure,
        memory_pressure=pressure,
        io_pressure=pressure,
    )


def test_unaccounted_values_are_unset() -> None:
    stats = responses_stats.container_stats(ContainerUsage(MAIN, usage(), LAYER))
    assert (stats.cpu.timestamp, stats.cpu.usage_core_nano_seconds.value) == (7, 3000)
    assert not stats.cpu.HasField("usage_nano_cores")
    assert not stats.cpu.HasField("psi")
    assert (stats.memory.usage_bytes.value, stats.memory.working_set_bytes.value) == (200, 170)
    assert not stats.memory.HasField("available_bytes")
    assert not stats.HasField("swap")
    assert not stats.HasField("io")


def test_container_stats_have_all_known_values() -> None:
    known = usage(limit=1, swap=1, rate=1, pressure=1)
    stats = responses_stats.container_stats(ContainerUsage(MAIN, known, LAYER))
    assert (stats.attributes.id, stats.attributes.metadata.name, stats.attributes.metadata.attempt) == (
        *(CONTAINER, "main"),
        2,
    )
    assert stats.cpu.usage_nano_cores.value == 500
    assert stats.memory.available_bytes.value == 830
    assert (stats.swap.swap_usage_bytes.value, stats.swap.swap_available_bytes.value) == (5, 95)
    assert stats.io.psi.Some == pb.PsiData(Total=1000, Avg10=1.5, Avg60=0.5, Avg300=0.25)
    assert not stats.io.psi.HasField("Full")
    assert (stats.writable_layer.used_bytes.value, stats.writable_layer.timestamp) == (4096, 9)


def test_stopped_container_has_only_its_writable_layer() -> None:
    stats = responses_stats.container_stats(ContainerUsage(MAIN, None, LAYER))
    assert [field.name for field, _ in stats.ListFields()] == ["attributes", "writable_layer"]


def test_stopped_pod_has_only_its_attributes() -> None:
    stats = responses_stats.pod_stats(PodUsage(SANDBOX))
    assert [field.name for field, _ in stats.ListFields()] == ["attributes"]
    assert (stats.attributes.metadata.name, dict(stats.attributes.labels)) == ("web", {"app": "web"})


def test_pod_stats_include_containers() -> None:
    eth0, net1 = (Interface(name, Traffic(1, 2, 3, 4), Traffic(5, 6, 7, 8)) for name in ("eth0", "net1"))
    inside = ContainerUsage(MAIN, usage(), LAYER)
    pod = PodUsage(SANDBOX, usage(), Network(8, eth0, (net1,)), tasks=4, containers=(inside,))
    linux = responses_stats.pod_stats(pod).linux
    assert linux.process.process_count.value == 4
    assert linux.network.default_interface.name == "eth0"
    assert [each.name for each in linux.network.interfaces] == ["net1"]
    received = linux.network.default_interface
    assert (received.rx_bytes.value, received.rx_errors.value) == (1, 3)
    assert (received.tx_bytes.value, received.tx_errors.value) == (5, 7)
    assert [each.attributes.id for each in linux.containers] == [CONTAINER]


def test_host_network_pod_has_no_network_stats() -> None:
    assert not responses_stats.pod_stats(PodUsage(SANDBOX, usage())).linux.HasField("network")


def test_an_event_carries_the_state_of_the_pod() -> None:
    message = responses_stats.event(Event(CONTAINER, EventKind.STOPPED, 5, SANDBOX, (MAIN,)))
    assert (message.container_id, message.created_at) == (CONTAINER, 5)
    assert message.container_event_type == pb.CONTAINER_STOPPED_EVENT
    assert message.pod_sandbox_status.metadata.uid == "1"
    assert [each.id for each in message.containers_statuses] == [CONTAINER]


def test_label_values_are_in_the_order_of_their_keys() -> None:
    sample = Sample(names.CPU_USAGE, 3, ("total",))
    base = (CONTAINER, "busybox", "default", "web", "main")
    metrics = PodMetrics(POD, base, (), (ContainerMetrics(CONTAINER, base, (sample,)),))
    (metric,) = responses_stats.pod_metrics(metrics).container_metrics[0].metrics
    keys = responses_stats.metric_descriptor(names.CPU_USAGE).label_keys
    assert dict(zip(keys, metric.label_values, strict=True)) == {
        "id": CONTAINER,
        "image": "busybox",
        "namespace": "default",
        "pod": "web",
        "container": "main",
        "cpu": "total",
    }
    assert (metric.metric_type, metric.value.value, metric.timestamp) == (pb.COUNTER, 3, 0)
