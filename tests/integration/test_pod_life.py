# SPDX-License-Identifier: Apache-2.0
"""RunPodSandbox, StopPodSandbox, RemovePodSandbox, status and lists of pods, over the socket."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from support.cri_client import CriClient, eventually, pod_security, refused
from support.daemon import Machine
from support.machine_node import EmbeddedNode

from pvecri.cri.proto import cri_pb2 as pb

HOST = pb.NODE
UNKNOWN = "0" * 64
KINDS = {
    "unprivileged": pb.LinuxPodSandboxConfig(),
    "privileged": pod_security(privileged=True),
    "host network": pod_security(namespace_options=pb.NamespaceOption(network=HOST)),
    "host pid": pod_security(namespace_options=pb.NamespaceOption(pid=HOST)),
    "host ipc": pod_security(namespace_options=pb.NamespaceOption(ipc=HOST)),
    "host everything": pod_security(namespace_options=pb.NamespaceOption(network=HOST, pid=HOST, ipc=HOST)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_pod_of_every_kind_runs_a_container_and_leaves_nothing(
    machine: Machine, cri: CriClient, kind: str
) -> None:
    pod = cri.run_pod(cri.pod_config(linux=KINDS[kind]))
    assert cri.finish(pod, "echo", "hello") == "hello\n"
    running = cri.run(pod, "sleep", "1000", name="running")
    cri.stop_pod(pod)
    assert cri.pod_status(pod).state == pb.SANDBOX_NOTREADY
    assert cri.status(running).state == pb.CONTAINER_EXITED
    assert cri.status(running).exit_code == 137
    cri.remove_pod(pod)
    machine.assert_nothing_left()


@pytest.mark.parametrize("kind", ["unprivileged", "privileged"])
def test_a_ready_pod_can_be_removed_without_being_stopped(machine: Machine, cri: CriClient, kind: str) -> None:
    pod = cri.run_pod(cri.pod_config(linux=KINDS[kind]))
    cri.run(pod, "sleep", "1000")
    cri.remove_pod(pod)
    machine.assert_nothing_left()


def test_status_has_the_requested_configuration(cri: CriClient) -> None:
    config = cri.pod_config(labels={"app": "web"}, annotations={"note": "x" * 3000})
    pod = cri.run_pod(config)
    status = cri.pod_status(pod)
    assert (status.id, status.state, status.metadata) == (pod, pb.SANDBOX_READY, config.metadata)
    assert (status.labels, status.annotations) == (config.labels, config.annotations)
    assert status.created_at > 0
    assert status.network.ip.startswith("10.209.")


def test_stop_and_remove_are_idempotent(cri: CriClient) -> None:
    pod = cri.run_pod()
    cri.stop_pod(pod)
    cri.stop_pod(pod)
    cri.remove_pod(pod)
    cri.remove_pod(pod)
    cri.stop_pod(pod)


def test_stop_and_remove_of_an_unknown_id_succeed(cri: CriClient) -> None:
    cri.stop_pod(UNKNOWN)
    cri.remove_pod(UNKNOWN)
    cri.stop(UNKNOWN)
    cri.remove(UNKNOWN)


def test_status_of_an_unknown_id_is_not_found(cri: CriClient) -> None:
    with refused(grpc.StatusCode.NOT_FOUND, f"pod sandbox '{UNKNOWN}' does not exist"):
        cri.pod_status(UNKNOWN)
    with refused(grpc.StatusCode.NOT_FOUND, f"container '{UNKNOWN}' does not exist"):
        cri.status(UNKNOWN)


def test_an_empty_id_is_an_invalid_argument(cri: CriClient) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "pod_sandbox_id: must not be empty"):
        cri.stop_pod("")
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "container_id: must not be empty"):
        cri.remove("")


def test_second_pod_of_the_same_name_is_refused(cri: CriClient) -> None:
    config = cri.pod_config()
    pod = cri.run_pod(config)
    with refused(grpc.StatusCode.ALREADY_EXISTS, f"{config.metadata.name}.*its id is {pod}"):
        cri.run_pod(config)
    config.metadata.attempt = 1
    cri.run_pod(config)


def test_pods_are_listed_by_id_state_and_labels(cri: CriClient) -> None:
    web = cri.run_pod(cri.pod_config(labels={"app": "web", "tier": "front"}))
    data = cri.run_pod(cri.pod_config(labels={"app": "data", "tier": "back"}))
    cri.stop_pod(data)
    ready = pb.PodSandboxStateValue(state=pb.SANDBOX_READY)
    stopped = pb.PodSandboxStateValue(state=pb.SANDBOX_NOTREADY)
    assert [pod.id for pod in cri.pods()] == [web, data]
    assert [pod.id for pod in cri.pods(id=web[:13])] == [web]
    assert [pod.id for pod in cri.pods(state=ready)] == [web]
    assert [pod.id for pod in cri.pods(state=stopped)] == [data]
    assert [pod.id for pod in cri.pods(label_selector={"tier": "back"})] == [data]
    assert cri.pods(label_selector={"tier": "back", "app": "web"}) == []
    assert cri.pods(id=UNKNOWN) == []


def test_containers_are_listed_by_id_pod_state_and_labels(cri: CriClient) -> None:
    first, second = cri.run_pod(), cri.run_pod()
    running = cri.run(first, "sleep", "1000", labels={"app": "web"})
    ended = cri.run(second, "true", labels={"app": "data"})
    cri.wait_for_exit(ended)
    state = pb.ContainerStateValue(state=pb.CONTAINER_EXITED)
    assert [each.id for each in cri.containers()] == [running, ended]
    assert [each.id for each in cri.containers(id=ended[:13])] == [ended]
    assert [each.id for each in cri.containers(pod_sandbox_id=first)] == [running]
    assert [each.id for each in cri.containers(pod_sandbox_id=first[:13])] == [running]
    assert [each.id for each in cri.containers(state=state)] == [ended]
    assert [each.id for each in cri.containers(label_selector={"app": "web"})] == [running]


def test_id_prefix_is_accepted(cri: CriClient) -> None:
    pod = cri.run_pod()
    assert cri.pod_status(pod[:12]).id == pod


def test_container_cannot_be_created_in_a_stopped_pod(cri: CriClient) -> None:
    pod = cri.run_pod()
    waiting = cri.create(pod, cri.container_config("true"))
    cri.stop_pod(pod)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, f"pod sandbox {pod} is not ready"):
        cri.create(pod, cri.container_config("true", name="other"))
    with refused(grpc.StatusCode.FAILED_PRECONDITION, f"pod sandbox {pod} is not ready"):
        cri.start(waiting)


def test_ten_pods_run_and_are_removed_concurrently(machine: Machine, cri: CriClient) -> None:
    with ThreadPoolExecutor(10) as threads:
        pods = list(threads.map(lambda _: cri.run_pod(), range(10)))
        outputs = list(threads.map(lambda pod: cri.finish(pod, "hostname"), pods))
        names = [f"{cri.pod_status(pod).metadata.name}\n" for pod in pods]
        assert outputs == names
        assert len({cri.pod_status(pod).network.ip for pod in pods}) == 10
        list(threads.map(cri.remove_pod, pods))
    machine.assert_nothing_left()


@pytest.mark.parametrize("point", ["vzcreate", "vzstart"])
def test_cancelled_call_leaves_nothing(
    machine: Machine, embedded: EmbeddedNode, cri: CriClient, point: str
) -> None:
    embedded.fault(task=point, hold=True)
    request = pb.RunPodSandboxRequest(config=cri.pod_config())
    call = cri.runtime.RunPodSandbox.future(request)
    eventually(lambda: machine.node.cts() & set(machine.vmids), "the CT's config is there")
    call.cancel()
    embedded.clear_faults()
    machine.wait_until_nothing_left()
    eventually(lambda: not machine.node.cts() & set(machine.vmids), "the CT is gone")


def test_expired_deadline_leaves_nothing(machine: Machine, embedded: EmbeddedNode, cri: CriClient) -> None:
    embedded.fault(task="vzcreate", hold=True)
    with refused(grpc.StatusCode.DEADLINE_EXCEEDED, ""):
        cri.run_pod(timeout=0.5)
    embedded.clear_faults()
    machine.wait_until_nothing_left()


@pytest.mark.parametrize("end", ["cancelled", "daemon killed"])
def test_create_that_begins_after_its_client_has_gone_leaves_nothing(
    machine: Machine, embedded: EmbeddedNode, cri: CriClient, end: str
) -> None:
    """Proxmox activates the storage first, which may take long; there is no CT meanwhile."""
    embedded.fault(request="POST /nodes/[^/]+/lxc", delay=3.0)
    embedded.fault(task="vzcreate", hold=True)
    call = cri.runtime.RunPodSandbox.future(pb.RunPodSandboxRequest(config=cri.pod_config()))
    eventually(lambda: embedded.awaited() == 1, "Proxmox has the request")
    if end == "cancelled":
        call.cancel()
    else:
        machine.kill()
        machine.start()
    eventually(embedded.holds, "the CT is being created")
    embedded.clear_faults()
    eventually(lambda: not machine.node.cts() & set(machine.vmids), "the CT is gone")
    machine.wait_until_nothing_left()


def test_concurrent_stop_and_remove_of_a_pod_both_succeed(machine: Machine, cri: CriClient) -> None:
    pod = cri.run_pod()
    cri.run(pod, "sleep", "1000")
    calls = [cri.stop_pod, cri.remove_pod, cri.stop_pod, cri.remove_pod]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda call: call(pod), calls))
    machine.assert_nothing_left()
