# SPDX-License-Identifier: Apache-2.0
"""A filesystem of the daemon's fails: what runs can be ended, and what is begun is refused in a clear sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from support.cri_client import CriClient, eventually, refused
from support.daemon import Machine
from support.filesystems import FailingFilesystem, failing_filesystem

from pvecri.cri.proto import cri_pb2 as pb

FAILURES = {"read-only": FailingFilesystem.make_read_only, "I/O errors": FailingFilesystem.shut_down}

PROBLEM = "(readonly|Read-only|[Ii](nput)?/[Oo](utput)? error|malformed)"
"""Words of the kernel and of SQLite. After an error of the disk ext4 answers EROFS, in Linux 6.12 EIO."""

WAITS = ("sh", "-c", "until [ -e /dev/shm/end ]; do usleep 10000; done; exit 5")
"""Ends with status 5 after `end`; all that it reads is in memory."""

Failure = Callable[[FailingFilesystem], None]


@pytest.fixture
def failing(machine: Machine) -> Iterator[FailingFilesystem]:
    with failing_filesystem(machine.directory) as filesystem:
        yield filesystem
    (machine.directory / "failing").rmdir()
    (machine.directory / "ext4.image").unlink()


def end(machine: Machine, container: str) -> None:
    """Let a container that WAITS end."""
    (process, *_) = machine.processes_of(container)
    Path(f"/proc/{process}/root/dev/shm/end").touch()


@pytest.mark.parametrize("fail", FAILURES.values(), ids=FAILURES)
def test_pods_can_be_ended_if_the_state_directory_fails(
    machine: Machine, failing: FailingFilesystem, fail: Failure
) -> None:
    state = {"runtime": f'state_dir = "{failing.place}/state"', "network": f'cache_dir = "{failing.place}/cni"'}
    try:
        machine.restart(**state)
        cri = machine.client
        cri.pull(machine.image)
        stays, goes = cri.run_pod(), cri.run_pod()
        ends = cri.run(stays, *WAITS)
        created = cri.create(stays, cri.container_config("true", name="created"))
        runs = cri.run(goes, "sleep", "1000")
        fail(failing)
        end(machine, ends)
        assert cri.wait_for_exit(ends).exit_code == 5
        for begin in (cri.run_pod, lambda: cri.run(stays, "true", name="new"), lambda: cri.start(created)):
            with pytest.raises(grpc.RpcError, match=PROBLEM):
                begin()
        cri.stop(runs)
        cri.remove(runs)
        cri.stop_pod(goes)
        cri.remove_pod(goes)
        assert [each.id for each in cri.pods()] == [stays]
        stays_ct = cri.vmid(stays)
        eventually(lambda: not machine.node.cts() - {stays_ct}, "the CT of the removed pod is destroyed")

        machine.stop()
        failing.repair()
        machine.start(**state)
        for pod in machine.client.pods():
            machine.client.remove_pod(pod.id)
        machine.wait_for_removals()
    finally:
        machine.stop()
        failing.repair()  # nothing of a pod is mounted there
        machine.start()
    machine.assert_nothing_left()


def test_daemon_that_crashed_starts_on_a_full_disk_and_ends_pods(
    machine: Machine, failing: FailingFilesystem
) -> None:
    state = {"runtime": f'state_dir = "{failing.place}/state"', "network": f'cache_dir = "{failing.place}/cni"'}
    try:
        machine.restart(**state)
        machine.client.pull(machine.image)
        pod = machine.client.run_pod()
        container = machine.client.run(pod, *WAITS)
        failing.fill()
        machine.kill()
        end(machine, container)
        machine.start(**state)
        assert machine.client.wait_for_exit(container).exit_code == 5
        machine.client.stop_pod(pod)
        machine.client.remove_pod(pod)
        assert machine.client.pods() == []
    finally:
        machine.stop()
        failing.empty()
        machine.start(**state)
        for each in machine.client.pods():
            machine.client.remove_pod(each.id)
        machine.wait_for_removals()
        machine.restart()
    machine.assert_nothing_left()


def test_what_begins_is_refused_and_exits_are_stored_later(machine: Machine, failing: FailingFilesystem) -> None:
    # Not for a read-only filesystem: there SQLite may still overwrite blocks that its log has.
    images = machine.state_dir / "images"
    state = {"runtime": f'state_dir = "{failing.place}/state"', "images": f'root = "{images}"'}
    try:
        machine.restart(**state)
        cri = machine.client
        pod = cri.run_pod()
        ends = cri.run(pod, *WAITS)
        created = cri.create(pod, cri.container_config("true", name="created"))
        failing.shut_down()
        end(machine, ends)
        assert cri.wait_for_exit(ends).exit_code == 5
        problem = f"{failing.place}/state/pods\\.db cannot be written: .*{PROBLEM}.*\\(runtime\\.state_dir\\)"
        for begin in (cri.run_pod, lambda: cri.run(pod, "true", name="new"), lambda: cri.start(created)):
            with refused(grpc.StatusCode.UNAVAILABLE, problem):
                begin()
        assert cri.status(created).state == pb.CONTAINER_CREATED
        machine.stop()
        failing.repair()
        machine.start(**state)
        assert machine.client.status(ends).exit_code == 5
        machine.client.remove_pod(pod)
        machine.wait_for_removals()
    finally:
        machine.stop()
        failing.repair()
        machine.start()
    machine.assert_nothing_left()


@pytest.mark.parametrize("fail", FAILURES.values(), ids=FAILURES)
def test_container_whose_log_directory_fails_is_refused(
    machine: Machine, cri: CriClient, failing: FailingFilesystem, fail: Failure
) -> None:
    config = cri.pod_config(log_directory=f"{failing.place}/logs")
    pod = cri.run_pod(config)
    runs = cri.run(pod, *WAITS)
    new = cri.create(pod, cri.container_config("true", name="new"))
    fail(failing)
    with refused(grpc.StatusCode.INTERNAL, f"Failed to open log file.*{PROBLEM}"):
        cri.start(new)
    end(machine, runs)
    assert cri.wait_for_exit(runs).exit_code == 5
    cri.remove_pod(pod)
