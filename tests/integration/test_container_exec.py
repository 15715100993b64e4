# SPDX-License-Identifier: Apache-2.0
"""ExecSync over the socket."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from support.cri_client import CriClient, eventually, pod_security, refused, security
from support.daemon import Machine

from pvecri.cri.proto import cri_pb2 as pb

UNKNOWN = "0" * 64
LIMIT = 16 << 20


def test_stdout_stderr_and_exit_code_are_returned_separately(cri: CriClient, container: str) -> None:
    response = cri.exec(container, "sh", "-c", "echo out; echo err >&2; exit 5")
    assert (response.stdout, response.stderr, response.exit_code) == (b"out\n", b"err\n", 5)


def test_binary_output_is_returned_unchanged(cri: CriClient, container: str) -> None:
    assert cri.exec(container, "printf", "\\000\\377\\r\\n").stdout == b"\0\xff\r\n"


def test_command_runs_with_the_containers_user_and_environment(cri: CriClient, pod: str) -> None:
    linux = security(run_as_username="alice", capabilities=pb.Capability(drop_capabilities=["ALL"]))
    envs = [pb.KeyValue(key="COLOUR", value=b"blue")]
    container = cri.run(pod, "sleep", "1000", linux=linux, envs=envs, working_dir="/tmp")
    assert cri.output(container, "sh", "-c", "id -u; echo $COLOUR; pwd").split() == ["1000", "blue", "/tmp"]


def test_a_command_shares_the_containers_namespaces_and_cgroup(cri: CriClient, container: str) -> None:
    script = "cat /proc/self/cgroup; for kind in mnt net pid ipc uts user; do readlink /proc/self/ns/$kind; done"
    inside = cri.output(container, "sh", "-c", script)
    of_init = cri.output(container, "sh", "-c", script.replace("/proc/self", "/proc/1"))
    assert inside == of_init


def test_command_is_killed_with_its_children_after_the_timeout(
    machine: Machine, cri: CriClient, pod: str, container: str
) -> None:
    with refused(grpc.StatusCode.DEADLINE_EXCEEDED, f"exec in container {container}: timeout of 1 s"):
        cri.exec(container, "sh", "-c", "sleep 2000 & sleep 3000 & sleep 4000", timeout=1)
    eventually(lambda: len(machine.processes(pod, container)) == 1, "only the container's own process is left")
    assert cri.status(container).state == pb.CONTAINER_RUNNING


def test_cancelled_call_ends_the_command(machine: Machine, cri: CriClient, pod: str, container: str) -> None:
    request = pb.ExecSyncRequest(container_id=container, cmd=["sleep", "2000"])
    call = cri.runtime.ExecSync.future(request)
    eventually(lambda: len(machine.processes(pod, container)) > 1, "the command runs")
    call.cancel()
    eventually(lambda: len(machine.processes(pod, container)) == 1, "the command is gone")


def test_call_returns_if_the_command_leaves_a_background_child(cri: CriClient, container: str) -> None:
    response = cri.exec(container, "sh", "-c", "sleep 2000 >/dev/null 2>&1 & echo left", timeout=60)
    assert (response.stdout, response.exit_code) == (b"left\n", 0)


def test_output_is_truncated_at_16_mib_and_the_command_completes(cri: CriClient, container: str) -> None:
    response = cri.exec(container, "sh", "-c", "head -c 20000000 /dev/zero; echo end >&2")
    assert (len(response.stdout), response.stderr, response.exit_code) == (LIMIT, b"end\n", 0)


def test_missing_command_fails_with_its_name_in_stderr(cri: CriClient, container: str) -> None:
    response = cri.exec(container, "/not/there")
    assert response.exit_code != 0
    assert b"/not/there" in response.stderr


def test_no_command_is_an_invalid_argument(cri: CriClient, container: str) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "cmd: must not be empty"):
        cri.exec(container)


def test_exec_needs_a_running_container(cri: CriClient, pod: str) -> None:
    created = cri.create(pod, cri.container_config("true", name="created"))
    with refused(grpc.StatusCode.FAILED_PRECONDITION, f"container {created} is created, not running"):
        cri.exec(created, "true")
    ended = cri.run(pod, "true")
    cri.wait_for_exit(ended)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, f"container {ended} is exited, not running"):
        cri.exec(ended, "true")


def test_a_container_that_does_not_exist_is_not_found(cri: CriClient) -> None:
    with refused(grpc.StatusCode.NOT_FOUND, UNKNOWN):
        cri.exec(UNKNOWN, "true")


def test_output_of_concurrent_commands_is_not_mixed(cri: CriClient, container: str) -> None:
    with ThreadPoolExecutor(20) as threads:
        outputs = threads.map(lambda number: cri.output(container, "echo", str(number)), range(20))
    assert list(outputs) == [f"{number}\n" for number in range(20)]


def test_commands_end_with_their_container(cri: CriClient, pod: str, container: str) -> None:
    request = pb.ExecSyncRequest(container_id=container, cmd=["sh", "-c", "echo started; sleep 2000"])
    call = cri.runtime.ExecSync.future(request)
    eventually(lambda: "sleep 2000" in cri.output(container, "ps"), "the command runs")
    cri.stop(container)
    assert call.result().exit_code == 137


@pytest.mark.parametrize("options", [pb.NamespaceOption(pid=pb.NODE), pb.NamespaceOption(network=pb.NODE)])
def test_commands_run_in_containers_with_the_nodes_namespaces(cri: CriClient, options: pb.NamespaceOption) -> None:
    pod = cri.run_pod(cri.pod_config(linux=pod_security(namespace_options=options)))
    container = cri.run(pod, "sleep", "1000", linux=security(namespace_options=options))
    assert cri.output(container, "echo", "here") == "here\n"
    with refused(grpc.StatusCode.DEADLINE_EXCEEDED, "timeout of 1 s"):
        cri.exec(container, "sleep", "2000", timeout=1)
