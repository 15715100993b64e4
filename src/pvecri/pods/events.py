# SPDX-License-Identifier: Apache-2.0
"""What happens to pods and containers, told to whoever listens (CRI GetContainerEvents).

Nobody waits for a listener. One that does not keep up is dropped, with an error that tells it to look at the lists
and listen anew: so the kubelet's evented PLEG does after every error of the stream.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import Enum

from pvecri import metrics
from pvecri.errors import ResourceExhausted
from pvecri.model import Container, ContainerState, Sandbox, SandboxPhase

BACKLOG = 1000
"""Events that may wait for one listener: more than the 110 pods of a full node make when they all start."""


class EventKind(Enum):
    """CRI ContainerEventType."""

    CREATED = "created"
    STARTED = "started"
    STOPPED = "stopped"
    DELETED = "deleted"


@dataclass(frozen=True)
class Event:
    """Something happened to the container or the pod sandbox `id`; `time` is nanoseconds since the epoch.

    `sandbox` and `containers` say how the pod stood right after it: what is deleted is not among `containers`.
    """

    id: str
    kind: EventKind
    time: int
    sandbox: Sandbox
    containers: tuple[Container, ...]


OF_CONTAINER: dict[tuple[ContainerState | None, ContainerState], EventKind] = {
    (None, ContainerState.CREATED): EventKind.CREATED,
    (ContainerState.CREATED, ContainerState.RUNNING): EventKind.STARTED,
    (ContainerState.CREATED, ContainerState.EXITED): EventKind.STOPPED,
    (ContainerState.RUNNING, ContainerState.EXITED): EventKind.STOPPED,
}
"""The event of a change of a container's state; None stands for a container that was not there."""

OF_SANDBOX: dict[tuple[SandboxPhase, SandboxPhase], tuple[EventKind, ...]] = {
    (SandboxPhase.CREATING, SandboxPhase.READY): (EventKind.CREATED, EventKind.STARTED),
    (SandboxPhase.READY, SandboxPhase.STOPPED): (EventKind.STOPPED,),
}
"""The events of a change of a sandbox's phase, in their order."""


class Subscription(AsyncIterator[Event]):
    """The events since the subscription began, in their order.

    Iterating ends when the daemon does, and with ResourceExhausted when more than the backlog waits.
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
                    "ask for events again"
                )
            if self._closed:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        return self._waiting.popleft()

    def put(self, event: Event) -> None:
        """Add an event; what waits is thrown away when it is too much."""
        if len(self._waiting) >= self._backlog and not self._overrun:
            self._overrun = True
            metrics.LISTENERS_DROPPED.inc()
        if self._overrun:
            self._waiting.clear()
        else:
            self._waiting.append(event)
        self._changed.set()

    def close(self) -> None:
        """No more events come. Idempotent."""
        self._closed = True
        self._changed.set()


class Events:
    """Tells every subscription of every event. One object, in one event loop."""

    def __init__(self, backlog: int = BACKLOG) -> None:
        self._backlog = backlog
        # A subscription lasts as long as somebody holds it: the call that serves it, however that ends.
        self._subscriptions: weakref.WeakSet[Subscription] = weakref.WeakSet()

    def subscribe(self) -> Subscription:
        """Every event from now on."""
        subscription = Subscription(self._backlog)
        self._subscriptions.add(subscription)
        return subscription

    def publish(self, event: Event) -> None:
        """Tell everyone. Never blocks."""
        for subscription in self._subscriptions:
            subscription.put(event)

    def close(self) -> None:
        """End every subscription. Idempotent."""
        for subscription in self._subscriptions:
            subscription.close()
