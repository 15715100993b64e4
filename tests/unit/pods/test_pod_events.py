# SPDX-License-Identifier: Apache-2.0
"""Every change that clients can see is an event, once, and nobody has to wait for those who listen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from support import figures

from pvecri.errors import ResourceExhausted
from pvecri.model import (
    Container,
    ContainerConfig,
    ContainerId,
    ContainerMetadata,
    ContainerState,
    ImageId,
    Sandbox,
    SandboxConfig,
    SandboxId,
    SandboxMetadata,
    SandboxPhase,
)
from pvecri.pods.events import Event, EventKind, Events, Subscription
from pvecri.pods.registry import LiveContainer, LivePod, Pods
from pvecri.pods.store import Store

POD, CONTAINER = SandboxId("p" * 64), ContainerId("c" * 64)
CREATED, STARTED, STOPPED, DELETED = EventKind
METADATA = SandboxMetadata(name="web", namespace="default", uid="1")


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Pods]:
    store = Store(tmp_path / "pods.db")
    yield Pods(store, tmp_path)
    store.close()


@pytest.fixture
def pod(pods: Pods) -> LivePod:
    config = SandboxConfig(metadata=METADATA)
    return pods.add_pod(Sandbox(id=POD, config=config, created_at=1, phase=SandboxPhase.CREATING))


def add_container(pods: Pods) -> LiveContainer:
    config = ContainerConfig(metadata=ContainerMetadata(name="main"), image="busybox")
    value = Container(
        id=CONTAINER, sandbox_id=POD, config=config, image_id=ImageId("i"), image_reference="i", created_at=2
    )
    return pods.add_container(value)


def enter_phase(pods: Pods, pod: LivePod, phase: SandboxPhase) -> None:
    pods.save_pod(pod, replace(pod.value, phase=phase))


def enter_state(pods: Pods, container: LiveContainer, state: ContainerState) -> None:
    pods.save_container(container, replace(container.value, state=state))


async def told(pods: Pods, subscription: Subscription) -> list[Event]:
    pods.events.close()
    return [event async for event in subscription]


def event(number: int) -> Event:
    sandbox = Sandbox(id=POD, config=SandboxConfig(metadata=METADATA), created_at=number, phase=SandboxPhase.READY)
    return Event(str(number), CREATED, number, sandbox, ())


async def test_the_life_of_a_pod_is_told_in_its_order(pods: Pods, pod: LivePod) -> None:
    subscription = pods.events.subscribe()
    enter_phase(pods, pod, SandboxPhase.READY)
    container = add_container(pods)
    for state in (ContainerState.CREATED, ContainerState.RUNNING, ContainerState.EXITED):
        enter_state(pods, container, state)
    enter_phase(pods, pod, SandboxPhase.STOPPED)
    pods.drop_container(container)
    enter_phase(pods, pod, SandboxPhase.REMOVING)
    pods.drop_pod(pod)
    assert [(event.id, event.kind) for event in await told(pods, subscription)] == [
        *((POD, CREATED), (POD, STARTED)),
        *((CONTAINER, CREATED), (CONTAINER, STARTED), (CONTAINER, STOPPED)),
        *((POD, STOPPED), (CONTAINER, DELETED), (POD, DELETED)),
    ]


async def test_an_event_shows_the_pod_as_it_was_right_after_it(pods: Pods, pod: LivePod) -> None:
    subscription = pods.events.subscribe()
    container = add_container(pods)
    enter_state(pods, container, ContainerState.CREATED)
    enter_state(pods, container, ContainerState.RUNNING)
    pods.drop_container(container)
    shown = [[each.state for each in event.containers] for event in await told(pods, subscription)]
    assert shown == [[ContainerState.CREATED], [ContainerState.RUNNING], []]


async def test_what_was_never_complete_is_no_event(pods: Pods, pod: LivePod) -> None:
    subscription = pods.events.subscribe()
    pods.drop_container(add_container(pods))
    pods.drop_pod(pod)
    assert await told(pods, subscription) == []


async def test_a_container_that_could_not_be_started_has_stopped(pods: Pods, pod: LivePod) -> None:
    container = add_container(pods)
    enter_state(pods, container, ContainerState.CREATED)
    subscription = pods.events.subscribe()
    enter_state(pods, container, ContainerState.EXITED)
    assert [event.kind for event in await told(pods, subscription)] == [STOPPED]


async def test_storing_a_pod_or_container_without_a_change_of_state_is_no_event(pods: Pods, pod: LivePod) -> None:
    container = add_container(pods)
    for _ in range(2):
        enter_phase(pods, pod, SandboxPhase.READY)
        enter_state(pods, container, ContainerState.RUNNING)
    subscription = pods.events.subscribe()
    enter_phase(pods, pod, SandboxPhase.READY)
    enter_state(pods, container, ContainerState.RUNNING)
    assert await told(pods, subscription) == []


async def test_what_an_earlier_daemon_made_is_told_of_when_it_goes(
    pods: Pods, pod: LivePod, tmp_path: Path
) -> None:
    enter_phase(pods, pod, SandboxPhase.STOPPED)
    add_container(pods)
    store = Store(tmp_path / "pods.db")
    later = Pods(store, tmp_path)
    later.load()
    subscription = later.events.subscribe()
    later.drop_container(later.container(CONTAINER))
    later.drop_pod(later.pod(POD))
    assert [event.kind for event in await told(later, subscription)] == [DELETED, DELETED]
    store.close()


async def test_every_subscriber_is_told_what_happens_after_it_began() -> None:
    events = Events()
    first = events.subscribe()
    events.publish(event(1))
    second = events.subscribe()
    events.publish(event(2))
    events.close()
    assert [each.time async for each in first] == [1, 2]
    assert [each.time async for each in second] == [2]


async def test_who_does_not_read_is_dropped_and_the_others_are_not() -> None:
    events = Events(backlog=3)
    slow, quick = events.subscribe(), events.subscribe()
    dropped = figures.value("event_listeners_dropped_total")
    for number in range(5):
        events.publish(event(number))
        assert (await anext(quick)).time == number
    with pytest.raises(ResourceExhausted, match="more than 3 unread"):
        await anext(slow)
    assert figures.value("event_listeners_dropped_total") == dropped + 1


async def test_a_full_backlog_is_still_delivered() -> None:
    events = Events(backlog=3)
    subscription = events.subscribe()
    for number in range(3):
        events.publish(event(number))
    assert [(await anext(subscription)).time for _ in range(3)] == [0, 1, 2]
