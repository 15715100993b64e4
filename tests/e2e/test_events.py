# SPDX-License-Identifier: Apache-2.0
"""GetContainerEvents, as the kubelet's evented PLEG subscribes to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from support.cri_client import CALL_TIMEOUT, CriClient, refused
from support.daemon import Machine

from pvecri.cri.proto import cri_pb2 as pb

CREATED, STARTED = pb.CONTAINER_CREATED_EVENT, pb.CONTAINER_STARTED_EVENT
STOPPED, DELETED = pb.CONTAINER_STOPPED_EVENT, pb.CONTAINER_DELETED_EVENT


@contextmanager
def listening(cri: CriClient) -> Iterator[Any]:
    """The stream of events; all that happens inside is in it."""
    call = cri.runtime.GetContainerEvents(pb.GetEventsRequest(), timeout=CALL_TIMEOUT)
    call.initial_metadata()
    yield call
    call.cancel()


def until(call: Any, subject: str, kind: pb.ContainerEventType) -> list[pb.ContainerEventResponse]:
    """The events up to a certain one."""
    found = []
    for event in call:
        found.append(event)
        if (event.container_id, event.container_event_type) == (subject, kind):
            return found
    raise AssertionError(f"the stream ended after {found}")


def told(events: list[pb.ContainerEventResponse]) -> list[tuple[str, int]]:
    return [(event.container_id, event.container_event_type) for event in events]


def test_events_of_a_pod_and_its_container_are_sent_once_in_order(cri: CriClient) -> None:
    with listening(cri) as call:
        pod = cri.run_pod()
        container = cri.run(pod, "sh", "-c", "exit 3")
        cri.wait_for_exit(container)
        cri.remove(container)
        cri.stop_pod(pod)
        cri.stop_pod(pod)
        cri.remove_pod(pod)
        events = until(call, pod, DELETED)
    assert told(events) == [
        *((pod, CREATED), (pod, STARTED)),
        *((container, CREATED), (container, STARTED), (container, STOPPED), (container, DELETED)),
        *((pod, STOPPED), (pod, DELETED)),
    ]
    times = [event.created_at for event in events]
    assert times == sorted(times)


def test_event_has_the_status_of_the_pod_and_its_containers(cri: CriClient) -> None:
    config = cri.pod_config(labels={"app": "web"})
    with listening(cri) as call:
        pod = cri.run_pod(config)
        other = cri.run(pod, "sleep", "1000", name="other")
        container = cri.run(pod, "sh", "-c", "exit 3")
        stopped = until(call, container, STOPPED)[-1]
        cri.remove(container)
        deleted = until(call, container, DELETED)[-1]
    assert stopped.pod_sandbox_status == cri.pod_status(pod)
    assert stopped.pod_sandbox_status.metadata == config.metadata
    states = {each.id: (each.state, each.exit_code) for each in stopped.containers_statuses}
    assert states == {other: (pb.CONTAINER_RUNNING, 0), container: (pb.CONTAINER_EXITED, 3)}
    assert [each.id for each in deleted.containers_statuses] == [other]
    assert list(deleted.containers_statuses) == [cri.status(other)]


def test_last_event_of_a_removed_pod_has_its_metadata(cri: CriClient) -> None:
    pod = cri.run_pod(cri.pod_config(name="gone"))
    with listening(cri) as call:
        cri.remove_pod(pod)
        deleted = until(call, pod, DELETED)[-1]
    assert (deleted.pod_sandbox_status.id, deleted.pod_sandbox_status.metadata.name) == (pod, "gone")
    assert deleted.pod_sandbox_status.state == pb.SANDBOX_NOTREADY
    assert not deleted.containers_statuses


def test_pod_stopped_in_proxmox_sends_an_event(machine: Machine, cri: CriClient) -> None:
    pod = cri.run_pod()
    container = cri.run(pod, "sleep", "1000")
    with listening(cri) as call:
        path = f"/nodes/{machine.node.name}/lxc/{cri.vmid(pod)}/status/stop"
        machine.node.request("POST", path)
        first, second = next(call), next(call)
    assert {(each.container_id, each.container_event_type) for each in (first, second)} == {
        (pod, STOPPED),
        (container, STOPPED),
    }


def test_every_client_gets_the_events(cri: CriClient) -> None:
    with listening(cri) as first, listening(cri) as second:
        pod = cri.run_pod()
        assert told(until(first, pod, STARTED)) == told(until(second, pod, STARTED))


def test_failed_start_sends_a_stopped_event(cri: CriClient) -> None:
    pod = cri.run_pod()
    container = cri.create(pod, cri.container_config("/no/such/program"))
    with listening(cri) as call:
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "no/such/program"):
            cri.start(container)
        stopped = until(call, container, STOPPED)[-1]
    assert [each.reason for each in stopped.containers_statuses] == ["StartError"]


def test_streams_end_with_the_daemon_and_can_be_opened_again(machine: Machine, cri: CriClient) -> None:
    pod = cri.run_pod()
    container = cri.run(pod, "sleep", "1000")
    listener = CriClient(machine.socket, machine.logs)  # a connection that a restart does not close
    with listening(listener) as call:
        machine.restart()
        assert list(call) == []
    listener.close()
    with listening(machine.client) as anew:
        machine.client.stop(container)
        assert told(until(anew, container, STOPPED)) == [(container, STOPPED)]
