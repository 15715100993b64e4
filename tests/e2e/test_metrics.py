# SPDX-License-Identifier: Apache-2.0
"""CRI metrics with cAdvisor's names, as the kubelet converts them to Prometheus'."""

from __future__ import annotations

import pytest
from support.cri_client import CriClient, eventually, security

from pvecri.cri.proto import cri_pb2 as pb

MIB = 1 << 20

OF_EVERY_CONTAINER = """
    container_cpu_cfs_periods_total container_cpu_cfs_throttled_periods_total
    container_cpu_cfs_throttled_seconds_total container_cpu_system_seconds_total container_cpu_usage_seconds_total
    container_cpu_user_seconds_total container_file_descriptors container_fs_inodes_free
    container_fs_inodes_total container_fs_limit_bytes container_fs_usage_bytes container_last_seen
    container_memory_cache container_memory_failcnt container_memory_failures_total container_memory_mapped_file
    container_memory_rss container_memory_swap container_memory_usage_bytes container_memory_working_set_bytes
    container_oom_events_total container_processes container_sockets container_spec_memory_limit_bytes
    container_spec_memory_swap_limit_bytes container_start_time_seconds container_threads container_threads_max
""".split()

OF_EVERY_NETWORK = [
    f"container_network_{way}_{what}_total"
    for way in ("receive", "transmit")
    for what in ("bytes", "packets", "packets_dropped", "errors")
]


def descriptors(cri: CriClient) -> dict[str, list[str]]:
    """The label keys of each metric."""
    answer = cri.runtime.ListMetricDescriptors(pb.ListMetricDescriptorsRequest())
    return {each.name: list(each.label_keys) for each in answer.descriptors}


def metrics(cri: CriClient) -> list[pb.PodSandboxMetrics]:
    answer: pb.ListPodSandboxMetricsResponse = cri.runtime.ListPodSandboxMetrics(pb.ListPodSandboxMetricsRequest())
    return list(answer.pod_metrics)


def of_container(cri: CriClient, container: str) -> dict[str, pb.Metric]:
    """A container's metrics by name; the last one where several have it."""
    (found,) = [each for pod in metrics(cri) for each in pod.container_metrics if each.container_id == container]
    return {metric.name: metric for metric in found.metrics}


@pytest.fixture
def pod(cri: CriClient) -> str:
    return cri.run_pod(cri.pod_config(name="shop"))


def test_descriptors_are_constant(cri: CriClient, pod: str) -> None:
    before = descriptors(cri)
    cri.run(pod, "sleep", "1000")
    assert descriptors(cri) == before


def test_every_metric_has_a_descriptor_and_its_labels(cri: CriClient, pod: str) -> None:
    cri.run(pod, "sleep", "1000")
    described = descriptors(cri)
    (of_pod,) = metrics(cri)
    every = [*of_pod.metrics, *(each for container in of_pod.container_metrics for each in container.metrics)]
    assert all(len(each.label_values) == len(described[each.name]) for each in every)
    series = [(each.name, *each.label_values) for each in every]
    assert len(set(series)) == len(series)


def test_container_has_cadvisors_metrics(cri: CriClient, pod: str) -> None:
    container = cri.run(pod, "sleep", "1000")
    found = of_container(cri, container)
    assert set(OF_EVERY_CONTAINER) <= found.keys()
    keys = descriptors(cri)["container_threads"]
    labels = dict(zip(keys, found["container_threads"].label_values, strict=True))
    assert labels == {
        "id": container,
        "image": cri.image,
        "namespace": "tests",
        "pod": "shop",
        "container": "main",
    }


def test_a_pod_has_the_metrics_of_its_network_and_its_ct(cri: CriClient, pod: str) -> None:
    (of_pod,) = metrics(cri)
    found = {each.name: each for each in of_pod.metrics}
    assert set(OF_EVERY_NETWORK) <= found.keys()
    received = found["container_network_receive_bytes_total"]
    assert list(received.label_values) == [pod, "", "tests", "shop", "", "eth0"]
    assert received.metric_type == pb.COUNTER
    assert found["container_memory_working_set_bytes"].value.value > 0
    assert list(found["container_memory_working_set_bytes"].label_values) == [pod, "", "tests", "shop", ""]


def test_values_are_those_of_the_container(cri: CriClient, pod: str) -> None:
    linux = security()
    linux.resources.CopyFrom(
        pb.LinuxContainerResources(
            cpu_period=100_000, cpu_quota=50_000, cpu_shares=512, memory_limit_in_bytes=64 * MIB
        )
    )
    script = "dd if=/dev/zero of=/file bs=1M count=4 2>/dev/null; sync; sleep 1000 & exec 9</file; echo ok; wait"
    container = cri.run(pod, "sh", "-c", script, linux=linux)
    eventually(lambda: "ok" in cri.text(container), "it has written")
    found = {name: metric.value.value for name, metric in of_container(cri, container).items()}
    assert found["container_processes"] == 2
    assert found["container_threads"] == 2
    assert found["container_file_descriptors"] >= 7
    assert found["container_spec_memory_limit_bytes"] == 64 * MIB
    assert found["container_spec_cpu_quota"] == 50_000
    assert found["container_spec_cpu_period"] == 100_000
    assert found["container_spec_cpu_shares"] == 512
    assert 0 < found["container_memory_working_set_bytes"] <= 64 * MIB
    assert found["container_start_time_seconds"] == cri.status(container).started_at // 1_000_000_000
    assert found["container_fs_limit_bytes"] > found["container_fs_usage_bytes"] >= 4 * MIB


def test_only_cached_values_have_a_timestamp(cri: CriClient, pod: str) -> None:
    found = of_container(cri, cri.run(pod, "sleep", "1000"))
    assert {name for name, metric in found.items() if metric.timestamp} == {"container_fs_usage_bytes"}


def test_only_ready_pods_and_running_containers_have_metrics(cri: CriClient, pod: str) -> None:
    cri.create(pod, cri.container_config("sleep", "1000", name="created"))
    running = cri.run(pod, "sleep", "1000", name="running")
    stopped = cri.run_pod()
    cri.stop_pod(stopped)
    assert [(each.pod_sandbox_id, [c.container_id for c in each.container_metrics]) for each in metrics(cri)] == [
        (pod, [running])
    ]


def test_metrics_can_be_streamed(cri: CriClient) -> None:
    pods = [cri.run_pod() for _ in range(2)]
    messages = cri.runtime.StreamPodSandboxMetrics(pb.StreamPodSandboxMetricsRequest())
    assert [each.pod_sandbox_id for message in messages for each in message.pod_sandbox_metrics] == pods
