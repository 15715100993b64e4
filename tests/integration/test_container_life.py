# SPDX-License-Identifier: Apache-2.0
"""CreateContainer, StartContainer, StopContainer and RemoveContainer over the socket."""

from __future__ import annotations

import json
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from support.cri_client import CriClient, eventually, pod_security, refused, security
from support.daemon import Machine
from support.tools import tools_image

from pvecri.cri.proto import cri_pb2 as pb

MIB = 1 << 20
ON_TERM = "trap 'echo asked; exit 7' TERM; echo ready; while true; do usleep 10000; done"


def wait_for_text(cri: CriClient, container: str, text: str) -> None:
    eventually(lambda: text in cri.text(container), f"the container says {text!r}")


def test_container_is_created_running_and_exited(cri: CriClient, pod: str) -> None:
    container = cri.create(pod, cri.container_config("sleep", "1000"))
    created = cri.status(container)
    assert (created.state, created.started_at, created.finished_at) == (pb.CONTAINER_CREATED, 0, 0)
    cri.start(container)
    running = cri.status(container)
    assert running.state == pb.CONTAINER_RUNNING
    assert running.started_at >= running.created_at > 0
    cri.stop(container)
    ended = cri.status(container)
    assert ended.state == pb.CONTAINER_EXITED
    assert ended.finished_at >= ended.started_at
    assert (ended.exit_code, ended.reason) == (137, "Error")


def test_status_has_the_requested_configuration(cri: CriClient, pod: str) -> None:
    wanted = cri.container_config(
        "true",
        labels={"app": "web"},
        annotations={"hash": "1"},
        image=pb.ImageSpec(image=cri.image, user_specified_image="tools"),
    )
    container = cri.create(pod, wanted)
    status = cri.status(container)
    assert (status.id, status.metadata, status.image.image) == (container, wanted.metadata, cri.image)
    assert (status.labels, status.annotations) == (wanted.labels, wanted.annotations)
    assert status.image_ref.startswith(cri.image.rpartition(":")[0] + "@sha256:")
    assert status.image_id.startswith("sha256:")
    assert status.log_path.endswith("/main_0.log")
    assert cri.containers(id=container)[0].pod_sandbox_id == pod


@pytest.mark.parametrize(("command", "code", "reason"), [("exit 0", 0, "Completed"), ("exit 42", 42, "Error")])
def test_the_exit_code_is_the_commands(cri: CriClient, pod: str, command: str, code: int, reason: str) -> None:
    status = cri.wait_for_exit(cri.run(pod, "sh", "-c", command))
    assert (status.exit_code, status.reason) == (code, reason)


@pytest.mark.parametrize("name", ["KILL", "TERM", "SEGV"])
def test_exit_code_of_a_signal_is_128_plus_its_number(
    machine: Machine, cri: CriClient, pod: str, name: str
) -> None:
    container = cri.run(pod, "sh", "-c", f"sleep 1000 & kill -{name} $!; wait $!; exit $?")
    assert cri.wait_for_exit(container).exit_code == 128 + signal.Signals[f"SIG{name}"]


def test_container_above_its_memory_limit_is_oom_killed(machine: Machine, cri: CriClient, pod: str) -> None:
    linux = security()
    linux.resources.memory_limit_in_bytes = 24 * MIB
    status = cri.wait_for_exit(cri.run(pod, "tail", "/dev/zero", linux=linux))
    assert (status.exit_code, status.reason) == (137, "OOMKilled")
    assert not (machine.directory / "oom").exists()  # conmon leaves its mark in its working directory too


def test_stop_sends_sigterm_before_sigkill(cri: CriClient, pod: str) -> None:
    container = cri.run(pod, "sh", "-c", ON_TERM)
    wait_for_text(cri, container, "ready")
    cri.stop(container, timeout=100)
    assert (cri.status(container).exit_code, cri.text(container)) == (7, "ready\nasked\n")


def test_container_that_ignores_sigterm_is_killed_after_the_timeout(cri: CriClient, pod: str) -> None:
    container = cri.run(pod, "sh", "-c", "trap '' TERM; echo ready; while true; do usleep 10000; done")
    wait_for_text(cri, container, "ready")
    cri.stop(container, timeout=1)
    assert cri.status(container).exit_code == 137


def test_stop_with_timeout_0_kills_at_once(cri: CriClient, pod: str) -> None:
    container = cri.run(pod, "sh", "-c", ON_TERM)
    wait_for_text(cri, container, "ready")
    cri.stop(container, timeout=0)
    assert (cri.status(container).exit_code, cri.text(container)) == (137, "ready\n")


def test_requests_stop_signal_takes_precedence_over_the_images(machine: Machine, cri: CriClient, pod: str) -> None:
    image = machine.registry.push("tests/stopped-by-int", "1", tools_image(StopSignal="SIGINT"))
    cri.pull(image)
    script = "trap 'exit 2' INT; trap 'exit 10' USR1; echo ready; while true; do usleep 10000; done"
    by_image = cri.run(pod, "sh", "-c", script, name="a", image=pb.ImageSpec(image=image))
    by_request = cri.run(
        pod, "sh", "-c", script, name="b", image=pb.ImageSpec(image=image), stop_signal=pb.SIGUSR1
    )
    for container in (by_image, by_request):
        wait_for_text(cri, container, "ready")
        cri.stop(container, timeout=100)
    assert [cri.status(each).exit_code for each in (by_image, by_request)] == [2, 10]
    assert cri.status(by_request).stop_signal == pb.SIGUSR1


def test_concurrent_stops_of_a_container_all_succeed(cri: CriClient, pod: str) -> None:
    container = cri.run(pod, "sh", "-c", "trap '' TERM; echo ready; while true; do usleep 10000; done")
    wait_for_text(cri, container, "ready")
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda timeout: cri.stop(container, timeout), [100, 100, 1, 100]))
    assert cri.status(container).exit_code == 137


def test_a_running_container_can_be_removed(cri: CriClient, pod: str) -> None:
    container = cri.run(pod, "sleep", "1000")
    cri.remove(container)
    cri.remove(container)
    assert cri.containers() == []


def test_a_created_container_can_be_stopped_and_removed(cri: CriClient, pod: str) -> None:
    container = cri.create(pod, cri.container_config("true"))
    cri.stop(container)
    cri.remove(container)
    assert cri.containers() == []


def test_exited_container_cannot_be_started_again(cri: CriClient, pod: str) -> None:
    container = cri.run(pod, "true")
    cri.wait_for_exit(container)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, f"{container} is exited, not created"):
        cri.start(container)


def test_next_attempt_has_a_new_root_filesystem(cri: CriClient, pod: str) -> None:
    first = cri.run(pod, "sh", "-c", "touch /written; exit 1")
    cri.wait_for_exit(first)
    assert cri.finish(pod, "sh", "-c", "test ! -e /written; echo fresh", attempt=1) == "fresh\n"
    assert cri.text(first) == ""
    assert {each.metadata.attempt for each in cri.containers()} == {0, 1}


def test_second_container_of_the_same_name_and_attempt_is_refused(cri: CriClient, pod: str) -> None:
    container = cri.create(pod, cri.container_config("true"))
    with refused(grpc.StatusCode.ALREADY_EXISTS, f"main \\(attempt 0\\).*its id is {container}"):
        cri.create(pod, cri.container_config("true"))


def test_orphaned_processes_are_reaped_and_end_with_their_container(
    machine: Machine, cri: CriClient, pod: str
) -> None:
    linux = security(namespace_options=pb.NamespaceOption(pid=pb.POD))
    container = cri.run(pod, "sh", "-c", "sleep 1000 & sleep 2000 & exec sleep 3000", linux=linux)
    eventually(lambda: len(machine.processes(pod, container)) == 3, "all three run")
    cri.stop(container)
    assert machine.processes(pod, container) == []


def test_readonly_root_cannot_be_written(cri: CriClient, pod: str) -> None:
    script = "touch /file 2>&1 || echo refused; touch /dev/shm/file && echo shared"
    assert "refused\nshared" in cri.finish(pod, "sh", "-c", script, linux=security(readonly_rootfs=True))


def test_limits_are_set_on_the_containers_cgroup(cri: CriClient, pod: str) -> None:
    linux = security()
    linux.resources.MergeFrom(pb.LinuxContainerResources(memory_limit_in_bytes=64 * MIB, cpu_quota=50_000))
    container = cri.run(pod, "sleep", "1000", linux=linux)
    limit = Path(f"/sys/fs/cgroup/memory/lxc/{cri.vmid(pod)}/{container}/memory.limit_in_bytes")
    modern = Path(f"/sys/fs/cgroup/lxc/{cri.vmid(pod)}/{container}/memory.max")
    assert (limit if limit.exists() else modern).read_text().strip() == str(64 * MIB)
    assert cri.status(container).resources.linux.memory_limit_in_bytes == 64 * MIB


def test_container_restarts_make_no_request_to_proxmox(machine: Machine, cri: CriClient, pod: str) -> None:
    vmid = cri.vmid(pod)
    before = machine.node.tasks(vmid).keys()
    for attempt in range(20):
        container = cri.run(pod, "false", attempt=attempt)
        cri.wait_for_exit(container)
        cri.remove(container)
    assert machine.node.tasks(vmid).keys() == before


def test_a_privileged_container_needs_a_privileged_pod(cri: CriClient, pod: str) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "privileged: the pod is not privileged"):
        cri.create(pod, cri.container_config("true", linux=security(privileged=True)))


def test_a_privileged_container_may_mount(cri: CriClient) -> None:
    pod = cri.run_pod(cri.pod_config(linux=pod_security(privileged=True)))
    script = "mount -t tmpfs none /tmp && mount | grep -c '^none on /tmp '"
    assert cri.finish(pod, "sh", "-c", script, linux=security(privileged=True)) == "1\n"


def test_image_of_a_container_has_its_tag_though_the_kubelet_requests_the_id(
    machine: Machine, cri: CriClient, pod: str
) -> None:
    image = machine.registry.push("tests/named", "1", tools_image(Labels={"named": "yes"}))
    wanted = pb.ImageSpec(image=cri.pull(image), user_specified_image="named:1")
    container = cri.create(pod, cri.container_config("true", image=wanted))
    shown = cri.status(container)
    assert (shown.image.image, shown.image.user_specified_image) == (image, "named:1")
    assert shown.image_ref.startswith(f"{image.rpartition(':')[0]}@sha256:")
    assert shown.image_id == wanted.image
    assert cri.containers(id=container)[0].image == wanted


def test_image_without_a_tag_has_the_name_of_the_request(machine: Machine, cri: CriClient, pod: str) -> None:
    tag = machine.registry.push("tests/untagged", "1", tools_image(Labels={"only": "this"}))
    listed = cri.images.ImageStatus(pb.ImageStatusRequest(image=pb.ImageSpec(image=cri.pull(tag)))).image
    digest = listed.repo_digests[0]
    cri.images.RemoveImage(pb.RemoveImageRequest(image=pb.ImageSpec(image=listed.id)))
    cri.pull(digest)
    container = cri.create(pod, cri.container_config("true", image=pb.ImageSpec(image=digest)))
    assert cri.status(container).image.image == digest


def test_verbose_status_of_an_image_has_its_config(machine: Machine, cri: CriClient) -> None:
    made = tools_image(Env=["A=b"], Labels={"l": "x"})
    spec = pb.ImageSpec(image=cri.pull(machine.registry.push("tests/verbose", "1", made)))
    status = cri.images.ImageStatus(pb.ImageStatusRequest(image=spec, verbose=True))
    info = json.loads(status.info["info"])
    assert info["imageSpec"] == json.loads(made.config)
    assert info["imageSpec"]["config"]["Env"] == ["A=b"]
    assert info["labels"] == {"l": "x"}
    assert info["chainID"].startswith("sha256:")
