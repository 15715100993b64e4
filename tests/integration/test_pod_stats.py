# SPDX-License-Identifier: Apache-2.0
"""Stats of pods and containers, Version and Status."""

from __future__ import annotations

import json

import grpc
from support.cri_client import CriClient, eventually, refused, security
from support.daemon import Machine

import pvecri
from pvecri.cri.proto import cri_pb2 as pb

MIB = 1 << 20
UNKNOWN = "0" * 64


def stats(cri: CriClient, container: str) -> pb.ContainerStats:
    answer: pb.ContainerStats = cri.runtime.ContainerStats(pb.ContainerStatsRequest(container_id=container)).stats
    return answer


def test_container_stats_are_of_that_container_only(cri: CriClient, pod: str) -> None:
    linux = security()
    linux.resources.memory_limit_in_bytes = 64 * MIB
    script = "dd if=/dev/zero of=/dev/shm/block bs=1M count=16 2>/dev/null; dd if=/dev/zero of=/file bs=1M count=4"
    container = cri.run(pod, "sh", "-c", f"{script}; echo written; sleep 1000", linux=linux, labels={"app": "web"})
    eventually(lambda: "written" in cri.text(container), "it has written")
    shown = stats(cri, container)
    assert (shown.attributes.id, shown.attributes.metadata.name) == (container, "main")
    assert shown.attributes.labels == {"app": "web"}
    assert 16 * MIB <= shown.memory.usage_bytes.value <= 64 * MIB
    assert 16 * MIB <= shown.memory.working_set_bytes.value <= shown.memory.usage_bytes.value
    assert shown.memory.available_bytes.value == 64 * MIB - shown.memory.working_set_bytes.value
    assert shown.cpu.usage_core_nano_seconds.value > 0
    assert min(shown.cpu.timestamp, shown.memory.timestamp, shown.writable_layer.timestamp) > 0


def test_usage_of_the_writable_layer_is_in_the_stats(cri: CriClient, pod: str) -> None:
    container = cri.run(pod, "sh", "-c", "dd if=/dev/zero of=/file bs=1M count=4; sync; echo done; sleep 1000")
    eventually(lambda: "done" in cri.text(container), "it has written")
    layer = eventually(lambda: _written(cri, container), "the layer is counted")
    assert layer is not None
    assert layer.fs_id.mountpoint
    assert layer.inodes_used.value > 0


def _written(cri: CriClient, container: str) -> pb.FilesystemUsage | None:
    layer = stats(cri, container).writable_layer
    return layer if layer.used_bytes.value >= 4 * MIB else None


def test_stats_are_listed_by_id_pod_and_labels(cri: CriClient, pod: str) -> None:
    first = cri.run(pod, "sleep", "1000", labels={"app": "web"})
    second = cri.run(cri.run_pod(), "sleep", "1000", labels={"app": "data"})

    def listed(**wanted: object) -> list[str]:
        request = pb.ListContainerStatsRequest(filter=pb.ContainerStatsFilter(**wanted))  # type: ignore[arg-type]
        return [each.attributes.id for each in cri.runtime.ListContainerStats(request).stats]

    assert listed() == [first, second]
    assert listed(id=second) == [second]
    assert listed(pod_sandbox_id=pod) == [first]
    assert listed(label_selector={"app": "data"}) == [second]


def test_exited_container_has_no_cpu_and_memory_usage(cri: CriClient, pod: str) -> None:
    container = cri.run(pod, "true")
    cri.wait_for_exit(container)
    assert stats(cri, container).memory.usage_bytes.value == 0


def test_stats_of_an_unknown_id_are_not_found(cri: CriClient) -> None:
    with refused(grpc.StatusCode.NOT_FOUND, UNKNOWN):
        stats(cri, UNKNOWN)


def test_image_fs_info_has_the_usage_of_the_store(machine: Machine, cri: CriClient) -> None:
    info = cri.images.ImageFsInfo(pb.ImageFsInfoRequest())
    (images,), (containers,) = info.image_filesystems, info.container_filesystems
    assert images.used_bytes.value > 1 * MIB
    assert images.fs_id.mountpoint
    assert containers.fs_id.mountpoint
    assert min(images.timestamp, containers.timestamp) > 0


def test_version_names_the_runtime(cri: CriClient) -> None:
    version = cri.runtime.Version(pb.VersionRequest())
    assert (version.runtime_name, version.runtime_api_version) == ("pvecri", "v1")
    assert version.runtime_version == pvecri.__version__


def test_status_is_ready_and_verbose_has_the_settings(machine: Machine, cri: CriClient) -> None:
    plain = cri.runtime.Status(pb.StatusRequest())
    assert {each.type for each in plain.status.conditions} >= {"RuntimeReady", "NetworkReady"}
    assert all(each.status for each in plain.status.conditions)
    assert not plain.info
    verbose = cri.runtime.Status(pb.StatusRequest(verbose=True))
    assert json.loads(verbose.info["config"])["proxmox"]["node"] == machine.node.name


def test_verbose_status_has_the_ct(machine: Machine, cri: CriClient, pod: str) -> None:
    info = json.loads(cri.pod_info(pod).info["info"])
    assert info["vmid"] in machine.node.cts()
    assert info["cgroup"] == f"/lxc/{info['vmid']}"
