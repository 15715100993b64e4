# SPDX-License-Identifier: Apache-2.0
"""StartContainer and ExecSync in pods that are limited to a fraction of a CPU, as a kubelet limits them."""

from __future__ import annotations

from pvecri.cri.proto import cri_pb2 as pb
from pvecri.linux import cgroups
from pvecri.linux.cgroups import Cgroups
from pvecri_bench.session import Column, Pod, Session, end_pod, say

QUOTAS = (0, 100, 50)
"""Thousandths of a CPU; 0 is no limit."""

PERIOD = 100_000
"""Microseconds, the kubelet's default."""

SHARES, WEIGHT = 1024, 39
"""Of a CPU request of 1, for cgroup version 1 and 2: on a busy machine a smaller one would be measured, too."""


def measure(session: Session, images: dict[str, str], rounds: int) -> None:
    """One pod after the other with each limit; `images` as `life.warm_up` returns them."""
    trees = cgroups.detect()
    for number in range(rounds):
        if number % 10 == 0:
            say(f"pods with a CPU limit: {number} of {rounds}")
        for quota in QUOTAS:
            _measure_one(session, trees, images, number, quota)


def _measure_one(session: Session, trees: Cgroups, images: dict[str, str], number: int, quota: int) -> None:
    name = f"{quota / 1000:g} CPU" if quota else "no CPU limit"
    pods: dict[str, Pod] = {}
    groups: list[str] = []
    for column in session.columns:
        config = session.pod_config(f"quota-{column.name}-{quota}-{number}")
        groups.append(_limit(session, trees, config, quota))
        pods[column.name] = Pod(column.client.run_pod(config).value, config)

    def create(column: Column) -> str:
        config = session.container_config("c", images[column.name])
        config.linux.resources.CopyFrom(_resources(quota))
        pod = pods[column.name]
        return column.client.create(pod.id, config, pod.config).value

    containers = {column.name: create(column) for column in session.columns}
    session.turn(f"StartContainer, {name}", lambda column: column.client.start(containers[column.name]))
    session.turn(
        f"ExecSync true, {name}", lambda column: column.client.execute(containers[column.name], ["true"]), 3
    )
    for column in session.columns:
        end_pod(column, pods[column.name].id)
    for group in groups:
        trees.remove(group)


def _limit(session: Session, trees: Cgroups, config: pb.PodSandboxConfig, quota: int) -> str:
    """Create the pod's cgroup as a kubelet does, with the pod's limit, and put both into the request."""
    group = f"{session.cgroup_parent}/pod{config.metadata.uid}"
    for path in (session.cgroup_parent, group):
        trees.make(path)
    if trees.pure_v2:
        for path in ("/", session.cgroup_parent):
            (trees.directory(path, "cpu") / "cgroup.subtree_control").write_text("+cpu +cpuset +memory +pids +io")
        (trees.directory(group, "cpu") / "cpu.weight").write_text(str(WEIGHT))
        (trees.directory(group, "cpu") / "cpu.max").write_text(f"{quota * PERIOD // 1000 or 'max'} {PERIOD}")
    else:
        (trees.directory(group, "cpu") / "cpu.shares").write_text(str(SHARES))
        (trees.directory(group, "cpu") / "cpu.cfs_quota_us").write_text(str(quota * PERIOD // 1000 or -1))
    config.linux.cgroup_parent = group
    config.linux.resources.CopyFrom(_resources(quota))
    return group


def _resources(quota: int) -> pb.LinuxContainerResources:
    return pb.LinuxContainerResources(cpu_period=PERIOD, cpu_quota=quota * PERIOD // 1000, cpu_shares=SHARES)
