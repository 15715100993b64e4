# SPDX-License-Identifier: Apache-2.0
"""Pods and containers as the daemon holds them: the stored value, plus what lives only as long as the daemon."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TypeVar

from pvecri.errors import AlreadyExists, NotFound
from pvecri.linux.processes import Process
from pvecri.model import (
    Container,
    ContainerId,
    ContainerState,
    Image,
    NamespaceMode,
    Sandbox,
    SandboxId,
    SandboxPhase,
)
from pvecri.oci.runtime import Bundle, PodNamespaces
from pvecri.pods.events import OF_CONTAINER, OF_SANDBOX, Event, EventKind, Events
from pvecri.pods.store import Store

ID_LENGTH = 64


class Told(IntEnum):
    """What those who watch (hooks.py) were told last of a pod or container; it only ever grows."""

    NOTHING = 0
    MADE = 1
    ENDED = 2
    REMOVED = 3


@dataclass
class LiveContainer:
    """A container. `process` is its first process and `monitor` its conmon, while they run.

    `made` is set when its creation is complete: only then is it shown to clients, and its changes are events.
    `lock` is held by whoever changes the container, `limits_lock` by whoever changes its limits or starts it with
    those it has; nobody who holds that one waits for another. `settled` is set when the container's end has been
    recorded and what it held (mounts, cgroup, the OCI runtime's state) is released.
    """

    value: Container
    bundle: Bundle
    made: bool = False
    told: Told = Told.NOTHING
    process: Process | None = None
    monitor: Process | None = None
    watcher: asyncio.Task[None] | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    limits_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    settled: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def id(self) -> ContainerId:
        """The container's id."""
        return self.value.id


@dataclass
class LivePod:
    """A pod sandbox. `init` is the CT's first process while it runs; `pids_lock` is held by who adds to shared
    PIDs.
    """

    value: Sandbox
    directory: Path
    told: Told = Told.NOTHING
    init: Process | None = None
    watcher: asyncio.Task[None] | None = None
    containers: dict[ContainerId, LiveContainer] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    pids_lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def id(self) -> SandboxId:
        """The sandbox's id."""
        return self.value.id

    @property
    def files(self) -> Path:
        """Where the files that all containers of the pod share lie."""
        return self.directory / "files"

    def namespace(self, kind: str) -> Path:
        """The path by which one of the pod's namespaces (`net`, `pid`, …) is pinned."""
        return self.directory / "ns" / kind

    @property
    def cgroup(self) -> str:
        """The CT's cgroup, as Proxmox lays it out."""
        return f"/lxc/{self.value.vmid}"

    def group(self, container: ContainerId) -> str:
        """The cgroup of a container, below the CT's."""
        return f"{self.cgroup}/{container}"

    @property
    def namespaces(self) -> PodNamespaces:
        """How the OCI runtime reaches the pod."""
        options = self.value.config.security.namespaces
        cgroup = f"{self.cgroup}/conmon"
        uses_nodes = options.pid is NamespaceMode.NODE
        return PodNamespaces(pid=None if uses_nodes else self.namespace("pid"), cgroup=cgroup)

    @property
    def alive(self) -> bool:
        """Whether the CT runs."""
        return self.init is not None and self.init.alive


_TOLD = {
    SandboxPhase.CREATING: Told.NOTHING,
    SandboxPhase.READY: Told.MADE,
    SandboxPhase.STOPPED: Told.ENDED,
    SandboxPhase.REMOVING: Told.ENDED,
}
"""What an earlier daemon told of a pod that it left in a phase."""


class Pods:
    """All pods and containers, by id, with the store behind them."""

    def __init__(self, store: Store, directory: Path) -> None:
        """`directory` holds one directory a pod and one a container."""
        self._store = store
        self._pods: dict[SandboxId, LivePod] = {}
        self._containers: dict[ContainerId, LiveContainer] = {}
        self.directory = directory
        self.events = Events()
        """What happens to pods and containers: told wherever a change is stored, so that none is forgotten."""

    def load(self) -> None:
        """Read the store; nothing is live yet."""
        for sandbox in self._store.sandboxes():
            pod = LivePod(sandbox, self.directory / "pods" / sandbox.id, told=_TOLD[sandbox.phase])
            self._pods[sandbox.id] = pod
        for container in self._store.containers():
            live = self._attach(container)
            live.made = True
            live.told = Told.ENDED if container.state is ContainerState.EXITED else Told.MADE

    def _attach(self, container: Container) -> LiveContainer:
        live = LiveContainer(container, Bundle(self.directory / "containers" / container.id))
        self._containers[container.id] = live
        self._pods[container.sandbox_id].containers[container.id] = live
        return live

    # -- sandboxes --------------------------------------------------------------------------------------------

    def add_pod(self, sandbox: Sandbox) -> LivePod:
        """Store a new sandbox; AlreadyExists when the name is taken."""
        taken = next((pod for pod in self._pods.values() if pod.value.name == sandbox.name), None)
        if taken is not None:
            raise AlreadyExists(
                f"config.metadata: pod sandbox {sandbox.name} exists already, its id is {taken.id}"
            )
        self._store.save_sandbox(sandbox)
        pod = LivePod(sandbox, self.directory / "pods" / sandbox.id)
        self._pods[sandbox.id] = pod
        return pod

    def save_pod(self, pod: LivePod, value: Sandbox) -> None:
        """Change a sandbox."""
        self._store.save_sandbox(value)
        kinds = OF_SANDBOX.get((pod.value.phase, value.phase), ())
        pod.value = value
        for kind in kinds:
            self._tell(pod, pod.id, kind)

    def drop_pod(self, pod: LivePod) -> None:
        """Forget a sandbox and its containers. Idempotent."""
        self._store.delete_sandbox(pod.id)
        known = self._pods.pop(pod.id, None)
        for container in pod.containers:
            self._containers.pop(container, None)
        if known is not None and pod.value.phase is not SandboxPhase.CREATING:
            self._tell(pod, pod.id, EventKind.DELETED)

    def pods(self) -> list[LivePod]:
        """Every sandbox, in whatever phase."""
        return list(self._pods.values())

    def pod(self, sandbox_id: str) -> LivePod:
        """The sandbox with an id, or the one whose id begins so; NotFound."""
        return _lookup(
            self._pods, sandbox_id, "pod sandbox", lambda pod: pod.value.phase is not SandboxPhase.CREATING
        )

    # -- containers -------------------------------------------------------------------------------------------

    def add_container(self, container: Container) -> LiveContainer:
        """Store a new container; AlreadyExists when its sandbox has one of that name and attempt."""
        for other in self._pods[container.sandbox_id].containers.values():
            if other.value.name == container.name:
                raise AlreadyExists(
                    f"config.metadata: container {container.config.metadata.name} (attempt "
                    f"{container.config.metadata.attempt}) exists already in the pod, its id is {other.id}"
                )
        self._store.save_container(container)
        return self._attach(container)

    def save_container(self, container: LiveContainer, value: Container) -> None:
        """Change a container. The first time, its creation is complete."""
        self._store.save_container(value)
        before: ContainerState | None = container.value.state if container.made else None
        container.value, container.made = value, True
        kind = OF_CONTAINER.get((before, value.state))
        if kind is not None:
            self._tell(self.pod_of(container), container.id, kind)

    def drop_container(self, container: LiveContainer) -> None:
        """Forget a container. Idempotent."""
        self._store.delete_container(container.id)
        known = self._containers.pop(container.id, None)
        pod = self._pods.get(container.value.sandbox_id)
        if pod is None:
            return
        pod.containers.pop(container.id, None)
        if known is not None and container.made:
            self._tell(pod, container.id, EventKind.DELETED)

    def containers(self) -> list[LiveContainer]:
        """Every container."""
        return list(self._containers.values())

    def container(self, container_id: str) -> LiveContainer:
        """The container with an id, or the one whose id begins so; NotFound."""
        return _lookup(self._containers, container_id, "container", lambda container: container.made)

    def pod_of(self, container: LiveContainer) -> LivePod:
        """The pod that a container is in."""
        return self._pods[container.value.sandbox_id]

    def uses_image(self, image: Image) -> bool:
        """Whether a container was made from an image."""
        return any(container.value.image_id == image.id for container in self._containers.values())

    def _tell(self, pod: LivePod, subject: str, kind: EventKind) -> None:
        containers = tuple(each.value for each in pod.containers.values() if each.made)
        self.events.publish(Event(subject, kind, time.time_ns(), pod.value, containers))


K = TypeVar("K", bound=str)
V = TypeVar("V")


def _lookup(table: Mapping[K, V], wanted: str, kind: str, visible: Callable[[V], bool]) -> V:
    """By whole id, else by a prefix that only one has (as crictl abbreviates them)."""
    candidates = [key for key in table if key == wanted] or [
        key for key in table if wanted and len(wanted) < ID_LENGTH and key.startswith(wanted)
    ]
    found = [table[key] for key in candidates if visible(table[key])]
    if len(found) != 1:
        problem = "is ambiguous" if found else "does not exist"
        raise NotFound(f"{kind} {wanted!r} {problem}")
    return found[0]
