# SPDX-License-Identifier: Apache-2.0
"""CRI stats of pods and containers, as the kubelet needs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from support.cri_client import CriClient, eventually, pod_security, refused, security

from pvecri.cri.proto import cri_pb2 as pb
from pvecri.linux import cgroups

MIB = 1 << 20
BUSY = ("sh", "-c", "while :; do :; done")
HAS_PRESSURE = bool((unified := cgroups.detect().v2) and (unified / "cpu.pressure").exists())


def container_stats(cri: CriClient, container: str) -> pb.ContainerStats:
    answer: pb.ContainerStats = cri.runtime.ContainerStats(pb.ContainerStatsRequest(container_id=container)).stats
    return answer


def pod_stats(cri: CriClient, pod: str) -> pb.PodSandboxStats:
    answer: pb.PodSandboxStats = cri.runtime.PodSandboxStats(pb.PodSandboxStatsRequest(pod_sandbox_id=pod)).stats
    return answer


def test_cpu_rate_is_set_from_the_second_sample_on(cri: CriClient) -> None:
    pod = cri.run_pod()
    container = cri.run(pod, *BUSY)
    stats = container_stats(cri, container)

    def rated() -> pb.ContainerStats | None:
        later = container_stats(cri, container)
        return later if later.cpu.usage_nano_cores.value else None

    later = eventually(rated, "there is a rate")
    assert later is not None
    assert later.cpu.usage_core_nano_seconds.value > stats.cpu.usage_core_nano_seconds.value
    assert later.cpu.usage_nano_cores.value <= 1_500_000_000
    eventually(lambda: pod_stats(cri, pod).linux.cpu.usage_nano_cores.value, "the pod has a rate")


def test_stats_of_a_pod_include_its_containers(cri: CriClient) -> None:
    pod = cri.run_pod()
    script = "dd if=/dev/zero of=/dev/shm/$0 bs=1M count=8 2>/dev/null; echo written; sleep 1000"
    containers = [cri.run(pod, "sh", "-c", script, name, name=name) for name in ("one", "two")]
    eventually(lambda: all("written" in cri.text(each) for each in containers), "both have written")
    linux = pod_stats(cri, pod).linux
    assert [each.attributes.id for each in linux.containers] == containers
    assert linux.memory.usage_bytes.value >= sum(each.memory.usage_bytes.value for each in linux.containers)
    assert linux.memory.usage_bytes.value >= 16 * MIB
    assert linux.cpu.usage_core_nano_seconds.value >= max(
        each.cpu.usage_core_nano_seconds.value for each in linux.containers
    )
    assert linux.process.process_count.value >= 4  # two shells' sleeps, an init and two conmons


def test_available_memory_and_swap_are_relative_to_the_limit(cri: CriClient) -> None:
    linux = security()
    linux.resources.memory_limit_in_bytes = 64 * MIB
    linux.resources.memory_swap_limit_in_bytes = 64 * MIB
    pod = cri.run_pod()
    limited, free = cri.run(pod, "sleep", "1000", linux=linux), cri.run(pod, "sleep", "1000", name="free")
    stats = container_stats(cri, limited)
    assert stats.memory.available_bytes.value == 64 * MIB - stats.memory.working_set_bytes.value
    assert stats.swap.swap_available_bytes.value == 0
    assert not container_stats(cri, free).memory.HasField("available_bytes")


@pytest.mark.skipif(not HAS_PRESSURE, reason="the kernel counts no pressure")
def test_containers_and_pods_have_pressure(cri: CriClient) -> None:
    pod = cri.run_pod()
    container = cri.run(pod, *BUSY)
    for stats in (container_stats(cri, container), pod_stats(cri, pod).linux):
        assert stats.cpu.psi.HasField("Some")
        assert stats.memory.psi.HasField("Some")
        assert stats.io.psi.HasField("Full")


def received(cri: CriClient, pod: str) -> int:
    return pod_stats(cri, pod).linux.network.default_interface.rx_bytes.value


def a_userns() -> pb.UserNamespace:
    ids = [pb.IDMapping(host_id=1_000_000, container_id=0, length=65536)]
    return pb.UserNamespace(mode=pb.POD, uids=ids, gids=ids)


@pytest.mark.parametrize(
    "options",
    [pb.NamespaceOption(), pb.NamespaceOption(userns_options=a_userns())],
    ids=["Proxmox's ids", "the kubelet's ids"],
)
def test_traffic_is_counted_on_the_pods_interface(cri: CriClient, options: pb.NamespaceOption) -> None:
    pod = cri.run_pod(cri.pod_config(linux=pod_security(namespace_options=options)))
    other = cri.run_pod()
    own_options = pb.NamespaceOption(pid=pb.CONTAINER, userns_options=options.userns_options)
    container = cri.run(pod, "sleep", "1000", linux=security(namespace_options=own_options))
    before = received(cri, pod)
    cri.output(container, "ping", "-c", "3", "-s", "1000", cri.pod_status(other).network.ip)
    network = pod_stats(cri, pod).linux.network
    assert network.default_interface.name == "eth0"
    assert network.default_interface.rx_bytes.value >= before + 3000
    assert network.default_interface.tx_bytes.value >= 3000
    assert not network.interfaces


def test_pod_with_the_nodes_network_has_no_network_stats(cri: CriClient) -> None:
    pod = cri.run_pod(cri.pod_config(linux=pod_security(namespace_options=pb.NamespaceOption(network=pb.NODE))))
    linux = pod_stats(cri, pod).linux
    assert not linux.HasField("network")
    assert linux.cpu.usage_core_nano_seconds.value > 0


def test_ready_pods_are_listed_by_id_and_labels(cri: CriClient) -> None:
    web = cri.run_pod(cri.pod_config(labels={"app": "web"}))
    data = cri.run_pod(cri.pod_config(labels={"app": "data"}))

    def listed(**wanted: Any) -> list[str]:
        request = pb.ListPodSandboxStatsRequest(filter=pb.PodSandboxStatsFilter(**wanted))
        return [each.attributes.id for each in cri.runtime.ListPodSandboxStats(request).stats]

    assert listed() == [web, data]
    assert listed(id=data) == [data]
    assert listed(label_selector={"app": "web"}) == [web]
    cri.stop_pod(web)
    assert listed() == [data]
    assert not pod_stats(cri, web).HasField("linux")


def test_lists_have_running_containers_only(cri: CriClient) -> None:
    pod = cri.run_pod()
    created = cri.create(pod, cri.container_config("sleep", "1000", name="created"))
    ended = cri.run(pod, "true", name="ended")
    running = cri.run(pod, "sleep", "1000", name="running")
    cri.wait_for_exit(ended)
    stats = cri.runtime.ListContainerStats(pb.ListContainerStatsRequest()).stats
    assert [each.attributes.id for each in stats] == [running]
    for container in (created, ended):
        assert not container_stats(cri, container).HasField("cpu")
        assert container_stats(cri, container).writable_layer.inodes_used.value > 0


def test_pods_that_do_not_exist_are_not_found(cri: CriClient) -> None:
    with refused(grpc.StatusCode.NOT_FOUND, "does not exist"):
        pod_stats(cri, "0" * 64)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "pod_sandbox_id"):
        pod_stats(cri, "")


def streamed(call: Any, field: str) -> list[str]:
    return [_id(each) for message in call for each in getattr(message, field)]


def _id(entry: Any) -> str:
    return str(entry.id if hasattr(entry, "id") else entry.attributes.id)


STREAMS: dict[str, tuple[Callable[[CriClient], Any], Callable[[CriClient], Any], str]] = {
    "pods": (
        lambda cri: cri.runtime.StreamPodSandboxes(pb.StreamPodSandboxesRequest()),
        lambda cri: cri.runtime.ListPodSandbox(pb.ListPodSandboxRequest()).items,
        "pod_sandboxes",
    ),
    "containers": (
        lambda cri: cri.runtime.StreamContainers(pb.StreamContainersRequest()),
        lambda cri: cri.runtime.ListContainers(pb.ListContainersRequest()).containers,
        "containers",
    ),
    "container stats": (
        lambda cri: cri.runtime.StreamContainerStats(pb.StreamContainerStatsRequest()),
        lambda cri: cri.runtime.ListContainerStats(pb.ListContainerStatsRequest()).stats,
        "container_stats",
    ),
    "pod stats": (
        lambda cri: cri.runtime.StreamPodSandboxStats(pb.StreamPodSandboxStatsRequest()),
        lambda cri: cri.runtime.ListPodSandboxStats(pb.ListPodSandboxStatsRequest()).stats,
        "pod_sandbox_stats",
    ),
    "images": (
        lambda cri: cri.images.StreamImages(pb.StreamImagesRequest()),
        lambda cri: cri.images.ListImages(pb.ListImagesRequest()).images,
        "images",
    ),
}


@pytest.mark.parametrize("kind", STREAMS)
def test_streamed_list_equals_the_list(cri: CriClient, kind: str) -> None:
    for _ in range(2):
        cri.run(cri.run_pod(), "sleep", "1000")
    stream, listing, field = STREAMS[kind]
    expected = [_id(each) for each in listing(cri)]
    assert expected
    assert streamed(stream(cri), field) == expected


def test_streams_take_the_same_filters(cri: CriClient) -> None:
    web = cri.run_pod(cri.pod_config(labels={"app": "web"}))
    other = cri.run_pod()
    container = cri.run(other, "sleep", "1000", labels={"app": "data"})
    pods = pb.StreamPodSandboxesRequest(filter=pb.PodSandboxFilter(label_selector={"app": "web"}))
    assert streamed(cri.runtime.StreamPodSandboxes(pods), "pod_sandboxes") == [web]
    ended = pb.ContainerFilter(state=pb.ContainerStateValue(state=pb.CONTAINER_EXITED))
    assert list(cri.runtime.StreamContainers(pb.StreamContainersRequest(filter=ended))) == []
    wanted = pb.ContainerStatsFilter(pod_sandbox_id=other)
    stats = cri.runtime.StreamContainerStats(pb.StreamContainerStatsRequest(filter=wanted))
    assert streamed(stats, "container_stats") == [container]


def test_a_list_too_large_for_one_message_is_streamed_in_several(cri: CriClient) -> None:
    notes = {"note": "x" * 200_000}
    pods = [cri.run_pod(cri.pod_config(annotations=notes)) for _ in range(6)]
    messages = list(cri.runtime.StreamPodSandboxes(pb.StreamPodSandboxesRequest()))
    assert len(messages) > 1
    assert [each.id for message in messages for each in message.pod_sandboxes] == pods


def test_the_kubelets_pod_cidr_is_accepted(cri: CriClient) -> None:
    network = pb.NetworkConfig(pod_cidr="10.9.0.0/24")
    config = pb.RuntimeConfig(network_config=network)
    cri.runtime.UpdateRuntimeConfig(pb.UpdateRuntimeConfigRequest(runtime_config=config))


def test_concurrent_removal_does_not_fail_a_list(cri: CriClient) -> None:
    pod = cri.run_pod()
    containers = [cri.run(pod, "sleep", "1000", name=f"c{number}") for number in range(5)]
    calls = []
    for container in containers:
        calls.append(cri.runtime.ListPodSandboxStats.future(pb.ListPodSandboxStatsRequest()))
        calls.append(cri.runtime.ListContainerStats.future(pb.ListContainerStatsRequest()))
        calls.append(cri.runtime.ListPodSandboxMetrics.future(pb.ListPodSandboxMetricsRequest()))
        cri.remove(container)
    cri.remove_pod(pod)
    for call in calls:
        call.result()
