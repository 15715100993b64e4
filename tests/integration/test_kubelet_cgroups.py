# SPDX-License-Identifier: Apache-2.0
"""What a kubelet sets in its own cgroups of a pod acts on the pod's CT."""

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


def test_pod_pids_limit_bounds_a_fork_bomb(cri: CriClient, kubepods: Group) -> None:
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


def test_limits_that_changed_while_the_daemon_was_away_act_after_its_restart(
    machine: Machine, cri: CriClient, kubepods: Group
) -> None:
    config, group = pod_of_kubelet(cri, kubepods)
    pod = cri.run_pod(config)
    machine.kill()
    group.set(pids_max=80)
    machine.start()
    assert ct_cgroup(machine.client, pod).get("pids.max") == "80"


def test_a_container_without_limits_is_not_bound_by_those_of_another(
    machine: Machine, cri: CriClient, kubepods: Group
) -> None:
    # A kubelet sends the sum of the limits that containers have, and sets none for the pod unless all have one.
    sums = {"memory_limit_in_bytes": 64 * MIB, "cpu_quota": 20_000, "cpu_period": CPU_PERIOD, "cpu_shares": 102}
    config, _ = pod_of_kubelet(cri, kubepods, **sums)
    pod = cri.run_pod(config)
    assert ct(machine, pod, "memory") == ct(machine, cri.run_pod(), "memory")
    assert ct(machine, pod, "cpulimit") == 0
    assert ct(machine, pod, "cpuunits") == 4


def test_the_limits_of_a_pod_bound_its_ct(machine: Machine, cri: CriClient, kubepods: Group) -> None:
    sums = {"memory_limit_in_bytes": 64 * MIB, "cpu_quota": 20_000, "cpu_period": CPU_PERIOD}
    config, group = pod_of_kubelet(cri, kubepods, **sums)
    group.set(memory_max=64 * MIB, cpu_max=20_000)
    pod = cri.run_pod(config)
    assert ct(machine, pod, "memory") == 97
    assert ct(machine, pod, "cpulimit") == 0.2


@pytest.mark.parametrize("no_limit", [-1, (1 << 63) - 4096])
def test_a_resize_keeps_what_a_pod_has_no_limit_of(
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


def test_a_pod_without_limits_has_at_most_what_all_pods_may_have(
    machine: Machine, cri: CriClient, kubepods: Group
) -> None:
    config, _ = pod_of_kubelet(cri, kubepods)
    kubepods.set(memory_max=512 * MIB)
    assert ct(machine, cri.run_pod(config), "memory") == 512


def test_pods_weigh_what_their_quality_of_service_says(machine: Machine, cri: CriClient, kubepods: Group) -> None:
    best_effort, _ = pod_of_kubelet(cri, kubepods, cpu_shares=2)
    burstable, _ = pod_of_kubelet(cri, kubepods, cpu_shares=256)
    guaranteed, _ = pod_of_kubelet(cri, kubepods, cpu_shares=2048)
    weights = [ct(machine, cri.run_pod(config), "cpuunits") for config in (best_effort, burstable, guaranteed)]
    assert weights == [1, 10, 79]


def test_another_clients_cgroup_changes_nothing(machine: Machine, cri: CriClient, kubepods: Group) -> None:
    kubepods.set(pids_max=50, memory_max=512 * MIB)
    wanted = pb.LinuxContainerResources(memory_limit_in_bytes=64 * MIB)
    config = cri.pod_config(linux=pb.LinuxPodSandboxConfig(resources=wanted, cgroup_parent=kubepods.path))
    pod = cri.run_pod(config)
    assert ct(machine, pod, "memory") == 97
    assert ct_cgroup(cri, pod).get("pids.max") == "max"


def test_a_container_for_which_the_pod_has_no_pids_left_does_not_start(cri: CriClient, kubepods: Group) -> None:
    config, group = pod_of_kubelet(cri, kubepods)
    group.set(pids_max=4)
    container = cri.create(cri.run_pod(config), cri.container_config("true"))
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "podPidsLimit"):
        cri.start(container)
    assert cri.status(container).reason == "StartError"
