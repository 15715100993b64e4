# SPDX-License-Identifier: Apache-2.0
"""`create` of a front's container, in its CT's PID namespace (decision 0077).

The OCI runtime runs below a monitor in that namespace, so that the container's own nests in it. The monitor is
what the front's caller waits for, and what the front knows as the container's PID.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial

import msgspec
from msgspec.structs import replace

from pvecri.concurrency import finish
from pvecri.errors import AlreadyExists
from pvecri.linux import cgroup_mirror, processes
from pvecri.linux.cgroups import Cgroups
from pvecri.linux.processes import Process
from pvecri.model import Container, ContainerState, FrontContainer, ImageId
from pvecri.oci import runtime_state
from pvecri.oci.runtime import NO_LOG, OciRuntime, PodNamespaces
from pvecri.pods import files
from pvecri.pods.container import bundle
from pvecri.pods.container.exit import ContainerExits
from pvecri.pods.front import spec
from pvecri.pods.front.sandbox import FrontSandboxes
from pvecri.pods.front.wanted import (
    Client,
    LaunchFailed,
    WantedContainer,
    WantedSandbox,
    with_free_attempt,
)
from pvecri.pods.registry import ContainerEntry, PodEntry, Registry
from pvecri.supervision import Step, attempt

log = logging.getLogger(__name__)

WORK = "undo of a front's container"


class FrontCreator:
    """Creates containers of fronts; any number at once."""

    def __init__(
        self,
        registry: Registry,
        sandboxes: FrontSandboxes,
        runtime: OciRuntime,
        exits: ContainerExits,
        cgroups: Cgroups,
    ) -> None:
        self._registry = registry
        self._sandboxes = sandboxes
        self._runtime = runtime
        self._exits = exits
        self._cgroups = cgroups

    async def create(
        self,
        sandbox: WantedSandbox,
        wanted: WantedContainer,
        command: str,
        options: Sequence[str],
        log_options: Sequence[str],
        client: Client,
    ) -> int:
        """Create a container, and its pod's CT if it is the first; returns the monitor's PID.

        `command` is `create` or `restore`, `options` are what else the OCI runtime gets. LaunchFailed if that
        fails, AlreadyExists if the id is taken; nothing of the container is left then.
        """
        if any(each.id == wanted.id for each in self._registry.containers()):
            raise AlreadyExists(f"container {wanted.front_id} exists already")
        pod = await self._sandboxes.ensure(sandbox)
        async with AsyncExitStack() as undo:
            if sandbox.front.has_container:
                end = partial(self._sandboxes.container_gone, pod, was_sandbox=True)
                undo.push_async_callback(_undo, end, f"ending pod {pod.value.name}")
            container = self._registry.add_container(self._new(pod, wanted))
            undo.push_async_callback(_undo, partial(self.discard, pod, container), wanted.front_id)
            async with container.lock:
                monitor = await self._launch(pod, container, wanted, command, (options, log_options), client)
            undo.pop_all()
        return monitor

    def _new(self, pod: PodEntry, wanted: WantedContainer) -> Container:
        taken = {each.value.config.metadata for each in pod.containers.values()}
        return Container(
            id=wanted.id,
            sandbox_id=pod.id,
            config=replace(wanted.config, metadata=with_free_attempt(wanted.config.metadata, taken)),
            image_id=ImageId(wanted.image_id),
            image_reference=wanted.config.image,
            image_name=wanted.config.image,
            created_at=time.time_ns(),
            front=FrontContainer(
                id=wanted.front_id,
                root=wanted.root,
                bundle=str(wanted.bundle),
                cgroup=wanted.cgroup,
                sandbox=wanted.is_sandbox,
            ),
        )

    async def _launch(
        self,
        pod: PodEntry,
        container: ContainerEntry,
        wanted: WantedContainer,
        command: str,
        options: tuple[Sequence[str], Sequence[str]],
        client: Client,
    ) -> int:
        files.make_private_directory(container.bundle.directory, 0)
        nested, document = await asyncio.to_thread(spec.fitted, pod, container, wanted)
        container.bundle.spec.touch(mode=0o600)  # its environment may contain secrets
        container.bundle.spec.write_bytes(msgspec.json.encode(document))
        own, log_options = options
        arguments = [*(log_options or (NO_LOG,)), command, "--bundle", str(container.bundle.directory)]
        arguments += ["--pid-file", str(container.bundle.pid_file), *own, container.id]
        status = await client.launch(
            self._runtime.command(*arguments),
            exit_file=self._exits.file(container),
            pid_file=container.bundle.pid_file,
            pid_namespace=pod.namespace("pid") if nested else None,
            started=partial(_monitored, container),
        )
        if status:
            raise LaunchFailed(wanted.front_id, status)
        assert container.monitor is not None
        monitor = container.monitor.pid
        await asyncio.to_thread(self._settle, pod, container, monitor, nested=nested)
        self._exits.open_processes(pod, container)
        assert container.value.front is not None
        created = replace(container.value, front=replace(container.value.front, created=True))
        if command == "restore":  # its processes run on: no `start` follows
            created = replace(created, state=ContainerState.RUNNING, started_at=time.time_ns())
        self._registry.save_container(container, created)
        self._exits.watch(pod, container)
        return monitor

    def _settle(self, pod: PodEntry, container: ContainerEntry, monitor: int, *, nested: bool) -> None:
        """Put what the OCI runtime has made in terms of the node's PID namespace. Blocks."""
        group = pod.cgroups.container(container.id)
        where = PodNamespaces(pid=pod.namespace("pid") if nested else None, cgroups=pod.cgroups)
        old = int(container.bundle.pid_file.read_text())
        new = self._runtime.host_pid(where, group, container.bundle.pid_file)
        runtime_state.translate_pid(self._runtime.state_directory(container.id), old, new)
        container.bundle.pid_file.write_text(str(new))
        container.bundle.conmon_pid_file.write_text(str(monitor))
        self._cgroups.account(group, monitor)
        if container.value.front is not None and container.value.front.cgroup:
            try:
                cgroup_mirror.make(self._cgroups, group, container.value.front.cgroup)
            except OSError as error:  # its statistics are the front's alone
                log.warning("container %s: its front sees no statistics: %s", container.id, error)

    async def discard(self, pod: PodEntry, container: ContainerEntry) -> None:
        """Remove all of a container whose creation failed. Idempotent."""
        if container.monitor is not None and container.monitor.alive:
            processes.kill_tree(container.monitor.pid)  # and with it the OCI runtime
        await self.remove(pod, container)

    async def remove(self, pod: PodEntry, container: ContainerEntry) -> None:
        """Remove a container that does not run any more, and its record. Idempotent."""
        await self._exits.delete_of_front(pod, container)
        await asyncio.to_thread(bundle.remove_bundle, container.bundle)
        self._exits.forget(container)
        self._registry.drop_container(container)


def _monitored(container: ContainerEntry, pid: int) -> None:
    with suppress(ProcessLookupError):  # it has failed already
        container.monitor = Process(pid)


async def _undo(step: Step, action: str) -> None:
    # A client that is killed disconnects, which begins the undo, and has its call cancelled, too.
    await finish(attempt(step, WORK, action))
