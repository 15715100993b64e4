# SPDX-License-Identifier: Apache-2.0
"""Lifecycle events of pods and containers for subscribers (CRI GetContainerEvents).

Publishing never blocks. A subscriber that does not keep up is dropped with an error; the kubelet's evented PLEG
relists and subscribes again after any error of the stream (decision 0056).
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import Enum

from pvecri.errors import ResourceExhausted
from pvecri.model import Container, ContainerState, Sandbox, SandboxPhase
from pvecri.observability import metrics

BACKLOG = 1000
"""Events that may be queued for one subscriber: more than the 110 pods of a full node cause when all start."""


class EventKind(Enum):
    """CRI ContainerEventType."""

    CREATED = "created"
    STARTED = "started"
    STOPPED = "stopped"
    DELETED = "deleted"


@dataclass(frozen=True)
class Event:
    """An event of the container or pod sandbox `id`; `time` is nanoseconds since the epoch.

    `sandbox` and `containers` are the state right after it: `containers` lacks a deleted container.
    """

    id: str
    kind: EventKind
    time: int
    sandbox: Sandbox
    containers: tuple[Container, ...]


OF_CONTAINER: dict[tuple[ContainerState | None, ContainerState], EventKind] = {
    (None, ContainerState.CREATED): EventKind.CREATED,
    (ContainerState.CREATED, ContainerState.RUNNING): EventKind.STARTED,
    (ContainerState.CREATED, ContainerState.EXITED): EventKind.STOPPED,  # its start failed
    (ContainerState.RUNNING, ContainerState.EXITED): EventKind.STOPPED,
}
"""The event of a change of a container's state; None is the state before its creation."""

OF_SANDBOX: dict[tuple[SandboxPhase, SandboxPhase], tuple[EventKind, ...]] = {
    (SandboxPhase.CREATING, SandboxPhase.READY): (EventKind.CREATED, EventKind.STARTED),
    (SandboxPhase.READY, SandboxPhase.STOPPED): (EventKind.STOPPED,),
}
"""The events of a change of a sandbox's phase, in order."""


class Subscription(AsyncIterator[Event]):
    """The events since the subscription began, in order.

    Iteration ends when the daemon stops, and with ResourceExhausted after more than `backlog` unread events.
    """

    def __init__(self, backlog: int) -> None:
        self._backlog = backlog
        self._waiting: deque[Event] = deque()
        self._changed = asyncio.Event()
        self._closed = self._overrun = False

    async def __anext__(self) -> Event:
        while not self._waiting:
            if self._overrun:
                raise ResourceExhausted(
                    f"events: the client left more than {self._backlog} unread; list pods and containers, then "
                    "subscribe again"
                )
            if self._closed:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        return self._waiting.popleft()

    def put(self, event: Event) -> None:
        """Queue an event. Beyond the backlog all queued events are dropped and iteration fails."""
        if len(self._waiting) >= self._backlog and not self._overrun:
            self._overrun = True
            metrics.SUBSCRIBERS_DROPPED.inc()
        if self._overrun:
            # The client gets an error in their place; each holds the state of a whole pod (decision 0056).
            self._waiting.clear()
        else:
            self._waiting.append(event)
        self._changed.set()

    def close(self) -> None:
        """End the iteration after the queued events. Idempotent."""
        self._closed = True
        self._changed.set()


class Events:
    """Publishes every event to every subscription. Not thread-safe."""

    def __init__(self, backlog: int = BACKLOG) -> None:
        self._backlog = backlog
        # Weak: a subscription ends with the gRPC call that iterates over it, however that call ends.
        self._subscriptions: weakref.WeakSet[Subscription] = weakref.WeakSet()

    def subscribe(self) -> Subscription:
        """Subscribe to all events from now on."""
        subscription = Subscription(self._backlog)
        self._subscriptions.add(subscription)
        return subscription

    def publish(self, event: Event) -> None:
        """Queue an event for every subscription. Never blocks."""
        for subscription in self._subscriptions:
            subscription.put(event)

    def close(self) -> None:
        """End every subscription. Idempotent."""
        for subscription in self._subscriptions:
            subscription.close()
