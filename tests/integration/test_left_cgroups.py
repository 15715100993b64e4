# SPDX-License-Identifier: Apache-2.0
"""Cgroups of CTs that are gone, with which LXC starts no CT of their VMID."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import grpc
import pytest
from support.cri_client import CriClient, refused
from support.daemon import Machine

from pvecri.linux import cgroups

TREES = cgroups.detect()


@pytest.fixture
def left(machine: Machine) -> Iterator[list[str]]:
    """Cgroups as LXC leaves them, of every VMID that a pod may get."""
    groups = [f"/lxc/{vmid}" for vmid in machine.vmids]
    for group in groups:
        for each in (group, f"{group}/ns"):
            TREES.make(each)
    yield groups
    for group in groups:
        if not TREES.processes(group):  # else it is that of a pod, which is removed with it
            TREES.remove(group)


def test_pod_gets_the_vmid_of_a_ct_whose_cgroups_were_left(
    machine: Machine, cri: CriClient, left: list[str]
) -> None:
    pod = cri.run_pod()
    assert cri.finish(pod, "echo", "it runs") == "it runs\n"
    group = f"/lxc/{cri.vmid(pod)}"
    assert group in left
    cri.remove_pod(pod)
    machine.wait_for_removals()
    assert not TREES.exists(group)


def test_vmid_is_not_used_while_a_process_is_in_its_cgroup(
    machine: Machine, cri: CriClient, left: list[str]
) -> None:
    """It may be that of a CT which the account of the daemon does not see."""
    *busy, free = left
    with ExitStack() as stack:
        for group in busy:
            sleeper = stack.enter_context(subprocess.Popen(["sleep", "infinity"]))
            stack.callback(sleeper.kill)
            for tree in TREES.directories(f"{group}/ns"):
                (tree / "cgroup.procs").write_text(str(sleeper.pid))
        pod = cri.run_pod()
        assert f"/lxc/{cri.vmid(pod)}" == free
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "VMIDs .* are in use"):
            cri.run_pod()
        assert [group for group in busy if not TREES.processes(f"{group}/ns")] == []
