# SPDX-License-Identifier: Apache-2.0
"""Limits in a kubelet's own cgroup of a pod are applied to the pod's CT."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from support import pod_cgroups
from support.cri_client import CriClient, refused
from support.daemon import Machine
from support.pod_cgroups import Group

from pvecri.cri.proto import cri_pb2 as pb

MIB = 1 << 20
CPU_PERIOD = 100_000

FORK_BOMB = "for i in $(seq 300); do sleep 1000 & done 2>/dev/null; echo started; wait"


@pytest.fixture
def kubepods() -> Iterator[Group]:
    with pod_cgroups.kubepods() as group:
        yield group


def pod_of_kubelet(cri: CriClient, kubepods: Group, **resources: int) -> tuple[pb.PodSandboxConfig, Group]:
    """What a kubelet sends for a pod, and the cgroup that it has made for it."""
    config = cri.pod_config(
        linux=pb.LinuxPodSandboxConfig(resources=pb.LinuxContainerResources(**resources)),  # type: ignore[arg-type]
    )
    group = pod_cgroups.below(kubepods, f"pod{config.metadata.uid}")
    config.linux.cgroup_parent = group.path
    return config, group


def ct_cgroup(cri: CriClient, pod: str) -> Group:
    return pod_cgroups.of(f"/lxc/{cri.vmid(pod)}")


def ct(machine: Machine, pod: str, option: str) -> float:
    return float(str(machine.node.ct(machine.client.vmid(pod), "config").get(option, 0)))


def test_pod_pids_limit_stops_a_fork_bomb(cri: CriClient, kubepods: Group) -> None:
    config, group = pod_of_kubelet(cri, kubepods)
    group.set(pids_max=60)
    pod = cri.run_pod(config)
    container = cri.run(pod, "sh", "-c", FORK_BOMB)
    assert cri.wait_for_exit(container).exit_code == 2  # busybox's shell ends if it cannot fork
    assert ct_cgroup(cri, pod).get("pids.max") == "60"


def test_pods_without_a_pids_limit_have_none(cri: CriClient, kubepods: Group) -> None:
    config, _ = pod_of_kubelet(cri, kubepods)
    assert ct_cgroup(cri, cri.run_pod(config)).get("pids.max") == "max"
    assert ct_cgroup(cri, cri.run_pod()).get("pids.max") == "max"


def test_limits_changed_without_the_daemon_are_applied_at_its_start(
    machine: Machine, cri: CriClient, kubepods: Group
) -> None:
    config, group = pod_of_kubelet(cri, kubepods)
    pod = cri.run_pod(config)
    machine.kill()
    group.set(pids_max=80)
    machine.start()
    assert ct_cgroup(machine.client, pod).get("pids.max") == "80"


def test_container_without_limits_is_not_limited_by_another_containers(
    machine: Machine, cri: CriClient, kubepods: Group
) -> None:
    # A kubelet sends the sum of the limits that containers have, and sets none for the pod unless all have one.
    sums = {"memory_limit_in_bytes": 64 * MIB, "cpu_quota": 20_000, "cpu_period": CPU_PERIOD, "cpu_shares": 102}
    config, _ = pod_of_kubelet(cri, kubepods, **sums)
    pod = cri.run_pod(config)
    assert ct(machine, pod, "memory") == ct(machine, cri.run_pod(), "memory")
    assert ct(machine, pod, "cpulimit") == 0
    assert ct(machine, pod, "cpuunits") == 4


def test_limits_of_a_pod_are_set_on_its_ct(machine: Machine, cri: CriClient, kubepods: Group) -> None:
    sums = {"memory_limit_in_bytes": 64 * MIB, "cpu_quota": 20_000, "cpu_period": CPU_PERIOD}
    config, group = pod_of_kubelet(cri, kubepods, **sums)
    group.set(memory_max=64 * MIB, cpu_max=20_000)
    pod = cri.run_pod(config)
    assert ct(machine, pod, "memory") == 97
    assert ct(machine, pod, "cpulimit") == 0.2


@pytest.mark.parametrize("no_limit", [-1, (1 << 63) - 4096])
def test_resize_sets_no_limit_that_the_pod_lacks(
    machine: Machine, cri: CriClient, kubepods: Group, no_limit: int
) -> None:
    """A kubelet sends what its pod cgroup says: -1 for `max` of version 2, else the kernel's large number."""
    config, _ = pod_of_kubelet(cri, kubepods, memory_limit_in_bytes=64 * MIB, cpu_shares=102)
    pod = cri.run_pod(config)
    before = ct(machine, pod, "memory")
    changed = pb.LinuxContainerResources(memory_limit_in_bytes=no_limit, cpu_quota=-1, cpu_shares=2048)
    cri.runtime.UpdatePodSandboxResources(
        pb.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod, resources=changed)
    )
    assert ct(machine, pod, "memory") == before
    assert ct(machine, pod, "cpulimit") == 0
    assert ct(machine, pod, "cpuunits") == 79


def test_pod_without_limits_is_limited_by_node_allocatable(
    machine: Machine, cri: CriClient, kubepods: Group
) -> None:
    config, _ = pod_of_kubelet(cri, kubepods)
    kubepods.set(memory_max=512 * MIB)
    assert ct(machine, cri.run_pod(config), "memory") == 512


def test_cpu_weight_follows_the_qos_class(machine: Machine, cri: CriClient, kubepods: Group) -> None:
    best_effort, _ = pod_of_kubelet(cri, kubepods, cpu_shares=2)
    burstable, _ = pod_of_kubelet(cri, kubepods, cpu_shares=256)
    guaranteed, _ = pod_of_kubelet(cri, kubepods, cpu_shares=2048)
    weights = [ct(machine, cri.run_pod(config), "cpuunits") for config in (best_effort, burstable, guaranteed)]
    assert weights == [1, 10, 79]


def test_cgroup_parent_of_another_client_has_no_effect(machine: Machine, cri: CriClient, kubepods: Group) -> None:
    kubepods.set(pids_max=50, memory_max=512 * MIB)
    wanted = pb.LinuxContainerResources(memory_limit_in_bytes=64 * MIB)
    config = cri.pod_config(linux=pb.LinuxPodSandboxConfig(resources=wanted, cgroup_parent=kubepods.path))
    pod = cri.run_pod(config)
    assert ct(machine, pod, "memory") == 97
    assert ct_cgroup(cri, pod).get("pids.max") == "max"


def test_container_start_fails_if_the_pod_is_at_its_pids_limit(cri: CriClient, kubepods: Group) -> None:
    config, group = pod_of_kubelet(cri, kubepods)
    group.set(pids_max=4)
    container = cri.create(cri.run_pod(config), cri.container_config("true"))
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "podPidsLimit"):
        cri.start(container)
    assert cri.status(container).reason == "StartError"
