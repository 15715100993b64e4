# SPDX-License-Identifier: Apache-2.0
"""Shutdown and reboot of a pod's CT in Proxmox: the pod ends in order, with and without a daemon.

Each task failed after its whole timeout: the CT's init ignored LXC's signals.
"""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.cri_client import CriClient, eventually
from support.daemon import Machine

from pvecri.cri.proto import cri_pb2 as pb
from pvecri.pods.sandbox.shutdown import GRACE_ANNOTATION

ANSWERS = ("sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do usleep 10000; done")
IGNORES = ("sh", "-c", "trap '' TERM; echo ready; while :; do usleep 10000; done")


def started(cri: CriClient, pod: str, name: str, *command: str, **fields: object) -> str:
    """A container that has set its trap."""
    container = cri.run(pod, *command, name=name, **fields)
    eventually(lambda: cri.text(container) == "ready\n", "it listens")
    return container


def shut_down(machine: Machine, vmid: int, action: str = "shutdown", **options: object) -> None:
    """Run Proxmox's task to its end; it has to succeed."""
    machine.node.task("POST", f"/lxc/{vmid}/status/{action}", **options)


def ended(cri: CriClient, pod: str) -> None:
    eventually(lambda: cri.pod_status(pod).state == pb.SANDBOX_NOTREADY, "the pod is NotReady")


def test_containers_end_by_their_stop_signals(machine: Machine, cri: CriClient, pod: str) -> None:
    terminated = started(cri, pod, "terminated", *ANSWERS)
    by_quit = started(
        cri, pod, "quit", "sh", "-c", "trap 'exit 8' QUIT; echo ready; while :; do usleep 10000; done",
        stop_signal=pb.SIGQUIT,
    )  # fmt: skip
    killed = started(cri, pod, "killed", *IGNORES, annotations={GRACE_ANNOTATION: "1"})

    shut_down(machine, cri.vmid(pod), timeout=60)

    ended(cri, pod)
    assert [cri.status(each).exit_code for each in (terminated, by_quit, killed)] == [7, 8, 137]
    cri.remove_pod(pod)
    machine.assert_nothing_left()


def test_reboot_ends_the_pod_and_its_empty_ct(machine: Machine, cri: CriClient, pod: str) -> None:
    container = started(cri, pod, "web", *ANSWERS)
    shut_down(machine, cri.vmid(pod), "reboot", timeout=60)
    ended(cri, pod)
    assert cri.status(container).exit_code == 7
    vmid = cri.vmid(pod)
    eventually(lambda: machine.node.ct(vmid, "status/current")["status"] == "stopped", "the empty CT is stopped")
    cri.remove_pod(pod)
    machine.assert_nothing_left()


def test_without_a_daemon_the_ct_ends_by_itself(machine: Machine, cri: CriClient, pod: str) -> None:
    container, vmid = started(cri, pod, "web", *ANSWERS), cri.vmid(pod)
    machine.stop()
    try:
        shut_down(machine, vmid, timeout=60)
    finally:
        machine.start()
    cri = machine.client
    ended(cri, pod)
    assert cri.status(container).exit_code == 7
    cri.remove_pod(pod)
    machine.assert_nothing_left()


def test_daemon_that_is_killed_meanwhile_goes_on_when_it_is_back(
    machine: Machine, cri: CriClient, pod: str
) -> None:
    """The request is repeated until the CT has ended."""
    slow = "trap 'echo asked; while [ ! -e /tmp/end ]; do usleep 10000; done; exit 7' TERM; echo ready"
    container = started(cri, pod, "web", "sh", "-c", f"{slow}; while :; do usleep 10000; done")
    with ThreadPoolExecutor(1) as pool:
        task = pool.submit(shut_down, machine, cri.vmid(pod), timeout=120)
        eventually(lambda: "asked" in cri.text(container), "the container has its stop signal")
        machine.daemon.end(signal.SIGKILL)
        machine.start()
        cri = machine.client
        cri.output(container, "touch", "/tmp/end")
        task.result()
    ended(cri, pod)
    assert cri.status(container).exit_code == 7
    cri.remove_pod(pod)


def test_backup_in_stop_mode_ends_the_pod_and_the_empty_ct_that_it_starts(
    machine: Machine, cri: CriClient, pod: str
) -> None:
    container, vmid = started(cri, pod, "web", *ANSWERS), cri.vmid(pod)
    machine.node.task("POST", "/vzdump", vmid=vmid, storage="local", mode="stop", compress="0")
    ended(cri, pod)
    assert cri.status(container).exit_code == 7
    eventually(lambda: machine.node.ct(vmid, "status/current")["status"] == "stopped", "the empty CT is stopped")
    cri.remove_pod(pod)
    listed = machine.node.request("GET", f"/nodes/{machine.node.name}/storage/local/content?content=backup")
    assert isinstance(listed, list)
    [backup] = listed
    machine.node.task("DELETE", f"/storage/local/content/{backup['volid']}")
    machine.assert_nothing_left()


def test_pod_without_containers_is_shut_down(machine: Machine, cri: CriClient, pod: str) -> None:
    shut_down(machine, cri.vmid(pod), timeout=30)
    ended(cri, pod)
    cri.remove_pod(pod)
    machine.assert_nothing_left()


@pytest.mark.parametrize("left", ["gone", "a directory", "a link"])
def test_pod_whose_pipe_was_replaced_is_stopped_and_removed(
    machine: Machine, cri: CriClient, pod: str, left: str
) -> None:
    """Root in the CT may do that; the daemon follows no link out of the CT."""
    init = machine.node.ct(cri.vmid(pod), "status/current")["pid"]
    pipe = Path(f"/proc/{init}/root/run/shutdown")
    eventually(pipe.exists, "the pod's process has made it")
    pipe.unlink()
    if left == "a directory":
        pipe.mkdir()
    elif left == "a link":
        pipe.symlink_to(machine.state_dir / "lock")
    machine.restart()
    cri = machine.client
    assert cri.pod_status(pod).state == pb.SANDBOX_READY
    cri.stop_pod(pod)
    cri.remove_pod(pod)
    machine.assert_nothing_left()
