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
from pvecri.pods.registry import ContainerEntry, PodEntry, Registry
from pvecri.pods.store import Store

POD, CONTAINER = SandboxId("p" * 64), ContainerId("c" * 64)
CREATED, STARTED, STOPPED, DELETED = EventKind
METADATA = SandboxMetadata(name="web", namespace="default", uid="1")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    store = Store(tmp_path / "pods.db")
    yield Registry(store, tmp_path)
    store.close()


@pytest.fixture
def pod(registry: Registry) -> PodEntry:
    config = SandboxConfig(metadata=METADATA)
    return registry.add_pod(Sandbox(id=POD, config=config, created_at=1, phase=SandboxPhase.CREATING))


def add_container(registry: Registry) -> ContainerEntry:
    config = ContainerConfig(metadata=ContainerMetadata(name="main"), image="busybox")
    value = Container(
        id=CONTAINER, sandbox_id=POD, config=config, image_id=ImageId("i"), image_reference="i", created_at=2
    )
    return registry.add_container(value)


def enter_phase(registry: Registry, pod: PodEntry, phase: SandboxPhase) -> None:
    registry.save_pod(pod, replace(pod.value, phase=phase))


def enter_state(registry: Registry, container: ContainerEntry, state: ContainerState) -> None:
    registry.save_container(container, replace(container.value, state=state))


async def told(registry: Registry, subscription: Subscription) -> list[Event]:
    registry.events.close()
    return [event async for event in subscription]


def event(number: int) -> Event:
    sandbox = Sandbox(id=POD, config=SandboxConfig(metadata=METADATA), created_at=number, phase=SandboxPhase.READY)
    return Event(str(number), CREATED, number, sandbox, ())


async def test_lifecycle_events_of_a_pod_are_in_order(registry: Registry, pod: PodEntry) -> None:
    subscription = registry.events.subscribe()
    enter_phase(registry, pod, SandboxPhase.READY)
    container = add_container(registry)
    for state in (ContainerState.CREATED, ContainerState.RUNNING, ContainerState.EXITED):
        enter_state(registry, container, state)
    enter_phase(registry, pod, SandboxPhase.STOPPED)
    registry.drop_container(container)
    enter_phase(registry, pod, SandboxPhase.REMOVING)
    registry.drop_pod(pod)
    assert [(event.id, event.kind) for event in await told(registry, subscription)] == [
        *((POD, CREATED), (POD, STARTED)),
        *((CONTAINER, CREATED), (CONTAINER, STARTED), (CONTAINER, STOPPED)),
        *((POD, STOPPED), (CONTAINER, DELETED), (POD, DELETED)),
    ]


async def test_event_has_the_state_right_after_it(registry: Registry, pod: PodEntry) -> None:
    subscription = registry.events.subscribe()
    container = add_container(registry)
    enter_state(registry, container, ContainerState.CREATED)
    enter_state(registry, container, ContainerState.RUNNING)
    registry.drop_container(container)
    shown = [[each.state for each in event.containers] for event in await told(registry, subscription)]
    assert shown == [[ContainerState.CREATED], [ContainerState.RUNNING], []]


async def test_incomplete_pods_and_containers_have_no_events(registry: Registry, pod: PodEntry) -> None:
    subscription = registry.events.subscribe()
    registry.drop_container(add_container(registry))
    registry.drop_pod(pod)
    assert await told(registry, subscription) == []


async def test_failed_start_is_a_stopped_event(registry: Registry, pod: PodEntry) -> None:
    container = add_container(registry)
    enter_state(registry, container, ContainerState.CREATED)
    subscription = registry.events.subscribe()
    enter_state(registry, container, ContainerState.EXITED)
    assert [event.kind for event in await told(registry, subscription)] == [STOPPED]


async def test_save_without_a_change_of_state_is_no_event(registry: Registry, pod: PodEntry) -> None:
    container = add_container(registry)
    for _ in range(2):
        enter_phase(registry, pod, SandboxPhase.READY)
        enter_state(registry, container, ContainerState.RUNNING)
    subscription = registry.events.subscribe()
    enter_phase(registry, pod, SandboxPhase.READY)
    enter_state(registry, container, ContainerState.RUNNING)
    assert await told(registry, subscription) == []


async def test_removal_of_a_loaded_pod_is_an_event(registry: Registry, pod: PodEntry, tmp_path: Path) -> None:
    enter_phase(registry, pod, SandboxPhase.STOPPED)
    add_container(registry)
    store = Store(tmp_path / "pods.db")
    later = Registry(store, tmp_path)
    later.load()
    subscription = later.events.subscribe()
    later.drop_container(later.container(CONTAINER))
    later.drop_pod(later.pod(POD))
    assert [event.kind for event in await told(later, subscription)] == [DELETED, DELETED]
    store.close()


async def test_subscriber_gets_all_events_after_subscribing() -> None:
    events = Events()
    first = events.subscribe()
    events.publish(event(1))
    second = events.subscribe()
    events.publish(event(2))
    events.close()
    assert [each.time async for each in first] == [1, 2]
    assert [each.time async for each in second] == [2]


async def test_slow_subscriber_is_dropped_and_others_are_not() -> None:
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
