# SPDX-License-Identifier: Apache-2.0
"""The registry of pods and containers: each entry is the stored value and its runtime state in this daemon."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

from msgspec.structs import replace

from pvecri.errors import AlreadyExists, FailedPrecondition, NotFound
from pvecri.linux.processes import Process
from pvecri.model import (
    Container,
    ContainerId,
    ContainerState,
    FrontSandbox,
    NamespaceMode,
    Sandbox,
    SandboxId,
    SandboxMetadata,
    SandboxPhase,
)
from pvecri.observability import correlation
from pvecri.oci.pod_cgroups import PodCgroups
from pvecri.oci.runtime import Bundle, PodNamespaces
from pvecri.pods.events import OF_CONTAINER, OF_SANDBOX, Event, EventKind, Events
from pvecri.pods.node_shutdown import NodeShutdown
from pvecri.pods.store import Store, StoreUnavailable
from pvecri.pods.unsaved import Unsaved

log = logging.getLogger(__name__)

ID_LENGTH = 64


class LifecycleEvent(IntEnum):
    """Last lifecycle event of a pod or container that was sent to NRI plugins (hooks.py); monotonic."""

    NONE = 0
    CREATED = 1
    STOPPED = 2
    REMOVED = 3


@dataclass
class ContainerEntry:
    """A container. `process` is its first process and `monitor` its conmon, while they run.

    `created` becomes true when CreateContainer has succeeded: before that no client sees the container and its
    changes are no events. `lock` serializes start and removal. `limits_lock` serializes changes of the limits and
    the start that applies them; it is the innermost lock. `released` is set once the exit is recorded and the
    mounts, the cgroup and the OCI runtime's state are released.
    """

    value: Container
    bundle: Bundle
    created: bool = False
    notified: LifecycleEvent = LifecycleEvent.NONE
    process: Process | None = None
    monitor: Process | None = None
    watcher: asyncio.Task[None] | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    limits_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    released: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def id(self) -> ContainerId:
        """The container's id."""
        return self.value.id

    @property
    def hidden(self) -> bool:
        """Whether it is the container that a front makes for the sandbox itself: no list shows it."""
        return self.value.front is not None and self.value.front.sandbox


@dataclass
class PodEntry:
    """A pod sandbox.

    `init` is the CT's first process while the CT runs, `monitor` LXC's process for the CT once that was killed.
    `hidden` is set if our account did not see the CT in Proxmox while it ran: it was taken out of the pool.
    `create_unanswered` is when Proxmox may last have received a create of the CT (time.monotonic()), if its
    outcome is unknown; after a start of the daemon, when the row was read.
    `lock` serializes run, stop, update and removal. `pids_lock` serializes what adds processes to the PID
    namespace that the pod's containers share.
    """

    value: Sandbox
    directory: Path
    notified: LifecycleEvent = LifecycleEvent.NONE
    init: Process | None = None
    monitor: Process | None = None
    hidden: bool = False
    create_unanswered: float | None = None
    watcher: asyncio.Task[None] | None = None
    containers: dict[ContainerId, ContainerEntry] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    pids_lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def id(self) -> SandboxId:
        """The sandbox's id."""
        return self.value.id

    @property
    def files(self) -> Path:
        """The directory of the files that all containers of the pod share."""
        return self.directory / "files"

    def namespace(self, kind: str) -> Path:
        """The path at which one of the pod's namespaces (`net`, `pid`, …) is pinned."""
        return self.directory / "ns" / kind

    @property
    def cgroups(self) -> PodCgroups:
        """The cgroups of the CT and of what runs in it."""
        return PodCgroups(self.value.vmid)

    @property
    def namespaces(self) -> PodNamespaces:
        """The PID namespace and the cgroup in which conmon and the OCI runtime run."""
        options = self.value.config.security.namespaces
        # A front's containers are used from the node's, too: their records were moved there (front/create.py).
        uses_nodes = options.pid is NamespaceMode.NODE or self.value.front is not None
        # hostPID: the OCI runtime can create a container in the node's PID namespace only from inside it.
        return PodNamespaces(pid=None if uses_nodes else self.namespace("pid"), cgroups=self.cgroups)

    @property
    def alive(self) -> bool:
        """Whether the CT runs."""
        return self.init is not None and self.init.alive


_NOTIFIED = {
    SandboxPhase.CREATING: LifecycleEvent.NONE,
    SandboxPhase.READY: LifecycleEvent.CREATED,
    SandboxPhase.STOPPED: LifecycleEvent.STOPPED,
    SandboxPhase.REMOVING: LifecycleEvent.STOPPED,
}
"""The last event that the previous daemon process sent for a pod that it left in a phase."""


def _notified(sandbox: Sandbox) -> LifecycleEvent:
    return LifecycleEvent.REMOVED if sandbox.front is not None else _NOTIFIED[sandbox.phase]


class Registry:
    """All pods and containers by id, written through to the store."""

    def __init__(self, store: Store, directory: Path) -> None:
        """Below `directory` each pod and each container has a directory."""
        self._store = store
        self._pods: dict[SandboxId, PodEntry] = {}
        self._warm: dict[SandboxId, PodEntry] = {}
        self._removed: dict[SandboxId, PodEntry] = {}
        self._containers: dict[ContainerId, ContainerEntry] = {}
        self._attempts: dict[str, dict[SandboxId, PodEntry]] = {}
        """The sandboxes of each pod, by `SandboxMetadata.pod_name`."""
        self._with_host_ports: dict[SandboxId, PodEntry] = {}
        self.directory = directory
        self.generation = 0
        """Counts the changes of what clients can list: every method that changes an entry increases it."""
        self.unsaved = Unsaved()
        self.node_shutdown = NodeShutdown(directory)
        """Checked by what begins something."""
        self.events = Events()
        """Published to by every method that stores a change, so that no change goes without its event."""

    def close(self) -> None:
        """Write the unsaved changes; what they recorded is detected again at the next start if that fails."""
        with suppress(StoreUnavailable):
            self.unsaved.flush()
        if self.unsaved:
            log.warning("%d changes of pods and containers could not be stored", len(self.unsaved))

    def load(self) -> None:
        """Read the store; no process is opened yet."""
        for sandbox in self._store.sandboxes():
            if sandbox.warm is not None:
                self._warm[sandbox.id] = self._hidden_entry(sandbox)
                continue
            if sandbox.removed:
                self._removed[sandbox.id] = self._hidden_entry(sandbox)
                continue
            self._enter(self._entry(sandbox, _notified(sandbox)))
        for container in self._store.containers():
            entry = self._attach(container)
            # Also one whose creation was cut off, for its row was written first: clients see and remove it.
            entry.created = True
            if container.front is None:
                entry.notified = (
                    LifecycleEvent.STOPPED if container.state is ContainerState.EXITED else LifecycleEvent.CREATED
                )

    def _attach(self, container: Container) -> ContainerEntry:
        entry = ContainerEntry(container, Bundle(self.directory / "containers" / container.id))
        if container.front is not None:
            entry.notified = LifecycleEvent.REMOVED  # its front has NRI plugins of its own
        self._containers[container.id] = entry
        self._pods[container.sandbox_id].containers[container.id] = entry
        return entry

    # -- sandboxes --------------------------------------------------------------------------------------------

    def add_pod(self, sandbox: Sandbox) -> PodEntry:
        """Store a new sandbox; AlreadyExists if another has its name, Unavailable while the node shuts down."""
        self.node_shutdown.check()
        self._check_name(sandbox)
        self.unsaved.save(sandbox.id, partial(self._store.save_sandbox, sandbox))
        pod = PodEntry(sandbox, self.directory / "pods" / sandbox.id)
        if sandbox.front is not None:
            pod.notified = LifecycleEvent.REMOVED
        self._enter(pod)
        _annotate(pod)
        return pod

    def _enter(self, pod: PodEntry) -> None:
        """Make a sandbox findable. Its config does not change until `_leave`."""
        self.generation += 1
        self._pods[pod.id] = pod
        self._attempts.setdefault(pod.value.config.metadata.pod_name, {})[pod.id] = pod
        if any(mapping.host_port for mapping in pod.value.config.port_mappings):
            self._with_host_ports[pod.id] = pod

    def _leave(self, pod: PodEntry) -> PodEntry | None:
        """Undo `_enter`. Idempotent; None if the sandbox was not among the pods."""
        self.generation += 1
        self._with_host_ports.pop(pod.id, None)
        pod_name = pod.value.config.metadata.pod_name
        attempts = self._attempts.get(pod_name, {})
        attempts.pop(pod.id, None)
        if not attempts:
            self._attempts.pop(pod_name, None)
        return self._pods.pop(pod.id, None)

    def save_pod(self, pod: PodEntry, value: Sandbox, *, ending: bool = False) -> None:
        """Store a new value of a sandbox and publish its event.

        StoreUnavailable, and nothing is changed, if the store cannot be written. A change that is `ending`
        something takes effect all the same and is written later. A sandbox that was dropped is not stored again.
        """
        if pod.id in self._pods or pod.id in self._warm or pod.id in self._removed:
            save = self.unsaved.save_when_possible if ending else self.unsaved.save
            save(pod.id, partial(self._store.save_sandbox, value))
        kinds = OF_SANDBOX.get((pod.value.phase, value.phase), ())
        pod.value = value
        self.generation += 1
        for kind in kinds if pod.id in self._pods else ():
            self._publish(pod, pod.id, kind)

    def drop_pod(self, pod: PodEntry) -> None:
        """Delete a sandbox and its containers. Idempotent; the row is deleted once the store can be written."""
        # Their rows are deleted with the pod's (ON DELETE CASCADE).
        self.unsaved.forget(pod.containers)
        self.unsaved.save_when_possible(pod.id, partial(self._store.delete_sandbox, pod.id))
        known = self._leave(pod)
        self._warm.pop(pod.id, None)
        self._removed.pop(pod.id, None)
        for container in pod.containers:
            self._containers.pop(container, None)
        if known is not None and pod.value.phase is not SandboxPhase.CREATING:
            self._publish(pod, pod.id, EventKind.DELETED)

    def retire_pod(self, pod: PodEntry) -> None:
        """Make a sandbox without containers, of which only the CT is left, `removed`: its name and id are free.

        Idempotent; `drop_pod` follows once the CT is destroyed.
        """
        if self._leave(pod) is None:
            return
        visible = pod.value.phase is not SandboxPhase.CREATING
        self._removed[pod.id] = pod
        pod.notified = LifecycleEvent.REMOVED
        self.save_pod(pod, replace(pod.value, phase=SandboxPhase.REMOVING, removed=True), ending=True)
        if visible:
            self._publish(pod, pod.id, EventKind.DELETED)

    def removed(self) -> list[PodEntry]:
        """The sandboxes that are removed for their clients, and whose CTs are not destroyed yet."""
        return list(self._removed.values())

    def _check_name(self, sandbox: Sandbox) -> None:
        taken = next(
            (pod for pod in self.attempts(sandbox.config.metadata) if pod.value.name == sandbox.name), None
        )
        if taken is not None:
            raise AlreadyExists(
                f"config.metadata: pod sandbox {sandbox.name} exists already, its id is {taken.id}"
            )

    def pods(self) -> list[PodEntry]:
        """Every sandbox, in whatever phase, without the warm CTs and those of removed pods."""
        return list(self._pods.values())

    @property
    def number_of_pods(self) -> int:
        """The length of `pods()`."""
        return len(self._pods)

    @property
    def number_of_containers(self) -> int:
        """The length of `containers()`."""
        return len(self._containers)

    def attempts(self, metadata: SandboxMetadata) -> list[PodEntry]:
        """Every sandbox of the same pod, whatever its attempt and phase."""
        return list(self._attempts.get(metadata.pod_name, {}).values())

    def with_host_ports(self) -> list[PodEntry]:
        """Every sandbox whose request has a host port, in whatever phase."""
        return list(self._with_host_ports.values())

    def cts(self) -> list[PodEntry]:
        """Everything that has or may have a CT: `pods`, `warm` and `removed`."""
        return [*self._pods.values(), *self._warm.values(), *self._removed.values()]

    def pod(self, sandbox_id: str) -> PodEntry:
        """The sandbox with an id or a unique prefix of one, unless it is being created; NotFound."""
        pod = _lookup(
            self._pods, sandbox_id, "pod sandbox", lambda pod: pod.value.phase is not SandboxPhase.CREATING
        )
        _annotate(pod)
        return pod

    def ready_pod(self, sandbox_id: str) -> PodEntry:
        """As `pod`; FailedPrecondition unless the sandbox is READY."""
        pod = self.pod(sandbox_id)
        if pod.value.phase is not SandboxPhase.READY:
            raise FailedPrecondition(f"pod sandbox {pod.id} is not ready")
        return pod

    # -- warm CTs (pods/warm/) --------------------------------------------------------------------------------

    def warm(self) -> list[PodEntry]:
        """The warm CTs: complete, being created or being removed. No client and no hook sees one."""
        return list(self._warm.values())

    def add_warm(self, sandbox: Sandbox) -> PodEntry:
        """Store a new warm CT; Unavailable while the node shuts down."""
        self.node_shutdown.check()
        self.unsaved.save(sandbox.id, partial(self._store.save_sandbox, sandbox))
        self._warm[sandbox.id] = entry = self._hidden_entry(sandbox)
        return entry

    def _hidden_entry(self, sandbox: Sandbox) -> PodEntry:
        return self._entry(sandbox, LifecycleEvent.REMOVED)

    def _entry(self, sandbox: Sandbox, notified: LifecycleEvent) -> PodEntry:
        """`sandbox` has a VMID only if it was read from the store."""
        unanswered = time.monotonic() if sandbox.vmid and not sandbox.ct_made else None
        directory = self.directory / "pods" / sandbox.id
        return PodEntry(sandbox, directory, notified=notified, create_unanswered=unanswered)

    def claim_warm(self, entry: PodEntry, sandbox: Sandbox) -> None:
        """Make a warm CT the sandbox of a pod, in one write; `sandbox` has the CT's id and VMID.

        AlreadyExists if another sandbox has its name, Unavailable while the node shuts down; then nothing is
        changed.
        """
        self.node_shutdown.check()
        self._check_name(sandbox)
        self.unsaved.save(sandbox.id, partial(self._store.save_sandbox, sandbox))
        del self._warm[entry.id]
        entry.value, entry.notified = sandbox, LifecycleEvent.NONE
        self._enter(entry)

    # -- containers -------------------------------------------------------------------------------------------

    def add_container(self, container: Container) -> ContainerEntry:
        """Store a new container; AlreadyExists if its sandbox has one of that name and attempt.

        Unavailable while the node shuts down.
        """
        self.node_shutdown.check()
        for other in self._pods[container.sandbox_id].containers.values():
            if other.value.name == container.name:
                raise AlreadyExists(
                    f"config.metadata: container {container.config.metadata.name} (attempt "
                    f"{container.config.metadata.attempt}) exists already in the pod, its id is {other.id}"
                )
        self.unsaved.save(container.id, partial(self._store.save_container, container))
        entry = self._attach(container)
        _annotate(self.pod_of(entry), entry)
        return entry

    def save_container(self, container: ContainerEntry, value: Container, *, ending: bool = False) -> None:
        """Store a new value of a container and publish its event; `ending` as in `save_pod`.

        The first call completes the container's creation.
        """
        if container.id in self._containers:
            save = self.unsaved.save_when_possible if ending else self.unsaved.save
            save(container.id, partial(self._store.save_container, value))
        before: ContainerState | None = container.value.state if container.created else None
        container.value, container.created = value, True
        self.generation += 1
        kind = OF_CONTAINER.get((before, value.state))
        if kind is not None and container.id in self._containers:
            self._publish(self.pod_of(container), container.id, kind)

    def drop_container(self, container: ContainerEntry) -> None:
        """Delete a container. Idempotent; the row is deleted once the store can be written."""
        self.unsaved.save_when_possible(container.id, partial(self._store.delete_container, container.id))
        known = self._containers.pop(container.id, None)
        self.generation += 1
        pod = self._pods.get(container.value.sandbox_id)
        if pod is None:
            return
        pod.containers.pop(container.id, None)
        if known is not None and container.created:
            self._publish(pod, container.id, EventKind.DELETED)

    def containers(self) -> list[ContainerEntry]:
        """Every container, also those that are being created."""
        return list(self._containers.values())

    def container(self, container_id: str) -> ContainerEntry:
        """The container with an id or a unique prefix of one, unless it is being created; NotFound."""
        container = _lookup(self._containers, container_id, "container", lambda container: container.created)
        _annotate(self.pod_of(container), container)
        return container

    def running_container(self, container_id: str) -> ContainerEntry:
        """As `container`; FailedPrecondition unless the container is RUNNING."""
        container = self.container(container_id)
        if container.value.state is not ContainerState.RUNNING:
            raise FailedPrecondition(f"container {container.id} is {container.value.state.value}, not running")
        return container

    def pod_of(self, container: ContainerEntry) -> PodEntry:
        """The pod that a container is in."""
        return self._pods[container.value.sandbox_id]

    async def sync(self) -> None:
        """Wait until the changes survive a crash of the node; StoreUnavailable."""
        await self._store.sync()

    async def write_unsaved(self) -> None:
        """Write the changes that could not be written before; StoreUnavailable if they still cannot."""
        self.unsaved.flush()

    def _publish(self, pod: PodEntry, subject: str, kind: EventKind) -> None:
        containers = tuple(each.value for each in pod.containers.values() if each.created)
        self.events.publish(Event(subject, kind, time.time_ns(), pod.value, containers))


def refuse_front(front: FrontSandbox | None, what: str) -> None:
    """FailedPrecondition for what only the front of a pod can do; None is a pod of pvecri's own clients."""
    if front is not None:
        raise FailedPrecondition(f"{what} is run by {front.kind.value}, through pvecri-runtime: use that")


K = TypeVar("K", bound=str)
V = TypeVar("V")


def _annotate(pod: PodEntry, container: ContainerEntry | None = None) -> None:
    """Add a pod and a container to the operation's fields, unless it has others, which it is about."""
    vmid = str(pod.value.vmid) if pod.value.vmid else ""
    correlation.annotate_missing(pod_id=pod.id, vmid=vmid, container_id=container.id if container else "")


def _lookup(table: Mapping[K, V], wanted: str, kind: str, visible: Callable[[V], bool]) -> V:
    """By full id, else by a unique prefix, as crictl abbreviates ids."""
    exact = table.get(cast("K", wanted))
    candidates = [exact] if exact is not None else _with_prefix(table, wanted)
    found = [each for each in candidates if visible(each)]
    if len(found) != 1:
        problem = "is ambiguous" if found else "does not exist"
        raise NotFound(f"{kind} {wanted!r} {problem}")
    return found[0]


def _with_prefix(table: Mapping[K, V], prefix: str) -> list[V]:
    if not prefix or len(prefix) >= ID_LENGTH:
        return []
    return [value for key, value in table.items() if key.startswith(prefix)]
