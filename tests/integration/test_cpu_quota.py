# SPDX-License-Identifier: Apache-2.0
"""What runs within the CPU quota of a pod's CT: the containers and their conmons, not the OCI runtime."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cri_client import CriClient
from support.daemon import Machine

from pvecri.cri.proto import cri_pb2 as pb
from pvecri.linux import cgroups, processes

TREES = cgroups.detect()


def cpu_group(text: str) -> str:
    """The group that has the CPU controller, from the content of /proc/PID/cgroup (cgroups(7))."""
    name = "cpu" if "cpu" in TREES.v1 else ""
    lines = (line.split(":", 2) for line in text.splitlines())
    return next(group for _, controllers, group in lines if name in controllers.split(","))


def cpu_group_of(pid: int) -> str:
    return cpu_group(Path(f"/proc/{pid}/cgroup").read_text())


@pytest.fixture
def calls(machine: Machine, tmp_path: Path) -> Iterator[Path]:
    """A directory in which each command of the OCI runtime has left its /proc/PID/cgroup, by its name."""
    program = tmp_path / "runc"
    record = f"for word; do case $word in create|start|exec) cat /proc/self/cgroup >{tmp_path}/$word; esac; done"
    program.write_text(f'#!/bin/sh\n{record}\nexec {shutil.which("runc")} "$@"\n')
    program.chmod(0o755)
    with machine.restarted(runtime=f'oci_runtime = "{program}"'):
        yield tmp_path


def test_oci_runtime_runs_in_the_daemons_cgroup(machine: Machine, calls: Path) -> None:
    cri = machine.client
    resources = pb.LinuxContainerResources(cpu_period=100_000, cpu_quota=10_000)
    pod = cri.run_pod(cri.pod_config(linux=pb.LinuxPodSandboxConfig(resources=resources)))
    container = cri.run(pod, "sleep", "1000")
    cri.exec(container, "true")
    groups = {path.name: cpu_group(path.read_text()) for path in calls.iterdir() if path.name != "runc"}
    assert groups == dict.fromkeys(("create", "start", "exec"), cpu_group_of(machine.daemon.pid))


def test_container_its_exec_and_its_conmon_run_in_the_ct_cgroup(
    machine: Machine, cri: CriClient, pod: str
) -> None:
    container = cri.run(pod, "sleep", "1000")
    ct = f"/lxc/{cri.vmid(pod)}"
    (process,) = machine.processes(pod, container)
    assert cpu_group_of(process) == f"{ct}/{container}"
    # Version 1's files have the path as the reader's cgroup namespace shows it, which is the node's.
    assert cpu_group(cri.output(container, "cat", "/proc/self/cgroup")) in (f"{ct}/{container}", "/")
    monitors = [pid for pid in TREES.processes(ct) if re.search("conmon$", processes.command_line(pid)[0])]
    assert [cpu_group_of(pid) for pid in monitors] == [f"{ct}/conmon"]
