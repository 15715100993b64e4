# SPDX-License-Identifier: Apache-2.0
"""The containers of fronts, after their creation: used from the node's PID namespace (decision 0077)."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from pvecri.errors import FailedPrecondition, NotFound
from pvecri.linux.cgroups import Cgroups
from pvecri.model import ContainerState, Resources
from pvecri.oci import runtime_state
from pvecri.oci.runtime import NO_LOG, OciRuntime
from pvecri.pods.container.exit import ContainerExits
from pvecri.pods.container.stop import ContainerStopper
from pvecri.pods.front import spec
from pvecri.pods.front.create import FrontCreator
from pvecri.pods.front.sandbox import FrontSandboxes
from pvecri.pods.front.wanted import Client, LaunchFailed
from pvecri.pods.registry import ContainerEntry, PodEntry, Registry

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FrontState:
    """What `state` prints: the OCI runtime spec's state, and runc's fields beside it."""

    id: str
    status: str
    pid: int
    bundle: str
    rootfs: str
    created: int
    annotations: Mapping[str, str]


class FrontContainers:
    """Carries out the commands of fronts; those for different containers do not wait for each other."""

    def __init__(
        self,
        registry: Registry,
        sandboxes: FrontSandboxes,
        runtime: OciRuntime,
        exits: ContainerExits,
        stopper: ContainerStopper,
        cgroups: Cgroups,
    ) -> None:
        self._registry = registry
        self._sandboxes = sandboxes
        self._runtime = runtime
        self._exits = exits
        self._stopper = stopper
        self._cgroups = cgroups
        self._creator = creator = FrontCreator(registry, sandboxes, runtime, exits, cgroups)
        self.create = creator.create

    # -- the other commands -----------------------------------------------------------------------------------

    def find(self, front_id: str, root: str) -> ContainerEntry:
        """A front's container; NotFound in the words by which fronts know that."""
        for each in self._registry.containers():
            front = each.value.front
            if front is not None and front.id == front_id and front.root == root:
                return each
        raise NotFound(f"container {front_id!r} does not exist")

    def state(self, container: ContainerEntry) -> FrontState:
        """The state now, from memory and the kernel."""
        front = container.value.front
        assert front is not None
        status = self._status(container)
        document = _decoded(container.bundle.spec)
        alive = status != "stopped" and container.monitor is not None
        return FrontState(
            id=front.id,
            status=status,
            pid=container.monitor.pid if alive and container.monitor is not None else 0,
            bundle=front.bundle,
            rootfs=str((document.get("root") or {}).get("path") or ""),
            created=container.value.created_at,
            annotations=document.get("annotations") or {},
        )

    def _status(self, container: ContainerEntry) -> str:
        assert container.value.front is not None
        if container.value.state is ContainerState.EXITED:
            return "stopped"
        if not container.value.front.created:
            return "creating"
        if container.process is None or not container.process.alive:
            return "stopped"
        if self._cgroups.is_frozen(self._group(container)):
            return "paused"
        return "created" if container.value.state is ContainerState.CREATED else "running"

    def _group(self, container: ContainerEntry) -> str:
        return self._registry.pod_of(container).cgroups.container(container.id)

    async def start(self, container: ContainerEntry, log_options: Sequence[str], client: Client) -> None:
        """Start the container's command.

        FailedPrecondition unless it is created, LaunchFailed if that fails, Unavailable while the node shuts down.
        """
        self._registry.node_shutdown.check()
        async with container.lock:
            status = self._status(container)
            if status != "created":
                raise FailedPrecondition(f"cannot start a container that is {status}")
            command = self._runtime.command(*(log_options or (NO_LOG,)), "start", container.id)
            try:
                # By the client: a program is started from it in a fraction of the time that it takes from here.
                code = await client.run(command)
            finally:
                self._note_start(container)
            if code:
                raise LaunchFailed(container.id, code)

    def _note_start(self, container: ContainerEntry) -> None:
        """Record that a created container was started, unless it has ended already."""
        started = runtime_state.is_started(self._runtime.state_directory(container.id))
        if started and container.value.state is ContainerState.CREATED and container.process is not None:
            running = replace(container.value, state=ContainerState.RUNNING, started_at=time.time_ns())
            self._registry.save_container(container, running)

    async def kill(self, container: ContainerEntry, number: int, *, everything: bool) -> None:
        """Send a signal to the first process, or to all; FailedPrecondition if it does not run."""
        group = self._group(container)
        if everything:
            for pid in self._processes(container):
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
        elif container.process is None or not container.process.send(number):
            raise FailedPrecondition("container not running")
        if number == signal.SIGKILL:
            self._cgroups.thaw(group, below=True)  # in version 1 a frozen process does not die

    def _processes(self, container: ContainerEntry) -> list[int]:
        monitor = container.monitor.pid if container.monitor is not None else 0
        return [pid for pid in self._cgroups.processes(self._group(container)) if pid != monitor]

    def processes(self, container: ContainerEntry) -> list[int]:
        """The PIDs on the node of all processes of the container."""
        if self._status(container) == "stopped":
            return []
        return self._processes(container)

    async def delete(self, front_id: str, root: str, *, force: bool) -> None:
        """Delete a container, with `force` also one that runs or does not exist; its pod, too, if that has ended.

        What fails is raised; a further call, or recovery, deletes the rest.
        """
        try:
            container = self.find(front_id, root)
        except NotFound:
            if force:
                return
            raise
        pod = self._registry.pod_of(container)
        async with container.lock:
            status = self._status(container)
            if not force and status != "stopped":
                raise FailedPrecondition(f"cannot delete container {front_id} that is not stopped: {status}")
            await self._stopper.kill(container)
            await self._creator.remove(pod, container)
        assert container.value.front is not None
        await self._sandboxes.container_gone(pod, was_sandbox=container.value.front.sandbox or _alone(pod))

    async def switch(self, container: ContainerEntry, command: str) -> None:
        """`pause` or `resume` the container; FailedPrecondition unless it runs."""
        status = self._status(container)
        if status not in ("running", "paused", "created"):
            raise FailedPrecondition(f"cannot {command} a container that is {status}")
        await self._runtime.run(command, container.id)

    async def update(
        self, container: ContainerEntry, options: Sequence[str], resources: dict[str, Any] | None
    ) -> None:
        """Update the container's limits, by `resources` (LinuxResources) if the options say `--resources=-`.

        The CT's follow, if they are others now.
        """
        if self._status(container) == "stopped":
            raise FailedPrecondition("container not running")
        async with container.limits_lock:
            fitting = b"" if resources is None else msgspec.json.encode(spec.below_ct(resources))
            await self._runtime.run("update", *options, container.id, stdin=fitting)
        pod = self._registry.pod_of(container)
        await self._sandboxes.follow_limits(pod, _limits(pod, resources or {}) if _alone(pod) else None)

    def command(self, container: ContainerEntry, *arguments: str) -> list[str]:
        """The OCI runtime's command line for a container that runs; FailedPrecondition if it does not."""
        status = self._status(container)
        if status == "stopped":
            raise FailedPrecondition("container not running")
        return self._runtime.command(*arguments)

    def runtime_command(self, *arguments: str) -> list[str]:
        """The OCI runtime's command line for what concerns no container."""
        return self._runtime.command(*arguments)

    # -- after a restart of the daemon -------------------------------------------------------------------------

    async def adopt(self, pod: PodEntry, container: ContainerEntry) -> None:
        """Go on with a container of the previous daemon process. Idempotent."""
        front = container.value.front
        assert front is not None
        if container.value.state is ContainerState.EXITED:
            container.released.set()
        elif not front.created:
            # Its client got no success, and the front deletes what it does not know of.
            await self._creator.discard(pod, container)
        else:
            self._exits.adopt(pod, container)
            self._note_start(container)


def _alone(pod: PodEntry) -> bool:
    """Whether the pod is one container of a front that knows no pods."""
    return pod.value.front is not None and pod.value.front.kind.is_podless


def _decoded(path: Path) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def _limits(pod: PodEntry, resources: dict[str, Any]) -> Resources:
    """The pod's limits after an update of its only container."""
    memory, cpu = resources.get("memory") or {}, resources.get("cpu") or {}
    changes = Resources(
        memory_limit=int(memory.get("limit") or 0),
        cpu_quota=int(cpu.get("quota") or 0),
        cpu_period=int(cpu.get("period") or 0),
        cpu_shares=int(cpu.get("shares") or 0),
    )
    return pod.value.config.resources.updated(changes)
