# SPDX-License-Identifier: Apache-2.0
"""`pvecri stop-pods`, as pvecri-shutdown.service runs it: pods end in order, and nothing new starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from support.cri_client import CriClient, eventually, refused
from support.daemon import Machine
from support.processes import SOURCES

from pvecri.cri.proto import cri_pb2 as pb
from pvecri.pods.sandbox.shutdown import GRACE_ANNOTATION


@pytest.fixture(params=["stopping"])
def systemd_state(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A directory with a `systemctl` that shows this state: the tests' machine has no systemd."""
    program = tmp_path / "systemctl"
    program.write_text(f'#!/bin/sh\n[ "$*" = is-system-running ] && echo {request.param}\nexit 1\n')
    program.chmod(0o755)
    return tmp_path


def stop_pods(machine: Machine, *options: str, path: Path) -> subprocess.CompletedProcess[str]:
    config = str(machine.directory / "config.toml")
    command = [sys.executable, "-m", "pvecri", "--config", config, "stop-pods", *options]
    env = {**os.environ, "PYTHONPATH": SOURCES, "PATH": f"{path}:{os.environ['PATH']}"}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def started(cri: CriClient, pod: str, name: str, trap: str, grace: int) -> str:
    """A container that has set its trap for SIGTERM, in a pod with this grace period."""
    script = f"trap '{trap}' TERM; echo ready; while :; do usleep 10000; done"
    container = cri.run(pod, "sh", "-c", script, name=name, annotations={GRACE_ANNOTATION: str(grace)})
    eventually(lambda: cri.text(container) == "ready\n", "it listens")
    return container


def test_pods_end_in_order_and_stay_ended_until_the_next_start(
    machine: Machine, cri: CriClient, systemd_state: Path
) -> None:
    """A handler of SIGTERM that takes longer than the default of one second for a CT at Proxmox's shutdown."""
    slow, stubborn = (cri.run_pod(cri.pod_config(name=name)) for name in ("slow", "stubborn"))
    terminated = started(cri, slow, "terminated", "sleep 2; exit 7", 60)
    killed = started(cri, stubborn, "killed", "", 1)
    cri.create(slow, cri.container_config("true", name="not-started"))

    done = stop_pods(machine, "--at-shutdown", path=systemd_state)

    assert (done.returncode, done.stdout) == (0, "2 of 2 pods stopped\n"), done.stderr
    assert {cri.pod_status(pod).state for pod in (slow, stubborn)} == {pb.SANDBOX_NOTREADY}
    assert [cri.status(each).exit_code for each in (terminated, killed)] == [7, 137]
    for pod in (slow, stubborn):
        assert machine.node.ct(cri.vmid(pod), "status/current")["status"] == "stopped"
    with refused(grpc.StatusCode.UNAVAILABLE, "the node is shutting down"):
        cri.run_pod(cri.pod_config(name="late"))

    machine.restart()
    cri = machine.client
    assert {cri.pod_status(pod).state for pod in (slow, stubborn)} == {pb.SANDBOX_NOTREADY}
    assert [cri.status(each).exit_code for each in (terminated, killed)] == [7, 137]
    for pod in (slow, stubborn, cri.run_pod(cri.pod_config(name="slow"))):
        cri.stop_pod(pod)
        cri.remove_pod(pod)
    machine.assert_nothing_left()


def test_nothing_is_created_or_started_in_a_pod_that_has_not_ended(
    machine: Machine, cri: CriClient, pod: str, systemd_state: Path
) -> None:
    container = cri.create(pod, cri.container_config("true"))
    (machine.run_dir / "node-shutdown").touch()
    with refused(grpc.StatusCode.UNAVAILABLE, "the node is shutting down"):
        cri.start(container)
    with refused(grpc.StatusCode.UNAVAILABLE, "the node is shutting down"):
        cri.create(pod, cri.container_config("true", name="another"))
    machine.restart()  # not announced any more
    machine.client.start(container)


@pytest.mark.parametrize("systemd_state", ["running", "starting", ""], indirect=True)
def test_stop_of_the_unit_alone_ends_no_pod(
    machine: Machine, cri: CriClient, container: str, systemd_state: Path
) -> None:
    done = stop_pods(machine, "--at-shutdown", path=systemd_state)
    assert (done.returncode, done.stdout) == (0, "the node is not shutting down: pods keep running\n")
    assert cri.status(container).state == pb.CONTAINER_RUNNING
    cri.run_pod(cri.pod_config(name="another"))


def test_timeout_limits_the_grace_periods(machine: Machine, cri: CriClient, pod: str, tmp_path: Path) -> None:
    stubborn = started(cri, pod, "stubborn", "", 3600)
    assert stop_pods(machine, "--timeout", "1", path=tmp_path).returncode == 0
    assert cri.status(stubborn).exit_code == 137
    cri.run_pod(cri.pod_config(name="another"))  # not at the node's shutdown: new pods are allowed


def test_without_a_daemon_it_fails(machine: Machine, cri: CriClient, container: str, systemd_state: Path) -> None:
    machine.stop()
    try:
        done = stop_pods(machine, "--at-shutdown", path=systemd_state)
    finally:
        machine.start()
    assert done.returncode == 1
    assert "no daemon serves on" in done.stderr
    assert machine.client.status(container).state == pb.CONTAINER_RUNNING
