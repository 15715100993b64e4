# SPDX-License-Identifier: Apache-2.0
"""What can be done with a running container: ExecSync, ReopenContainerLog, UpdateContainerResources."""

from __future__ import annotations

import asyncio
from pathlib import Path

from msgspec.structs import replace

from pvecri.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument
from pvecri.model import ContainerState, Resources
from pvecri.oci import spec
from pvecri.oci.abilities import Abilities
from pvecri.oci.runtime import ExecResult, OciRuntime
from pvecri.pods import validation
from pvecri.pods.hooks import Hooks
from pvecri.pods.registry import LiveContainer, Pods

REOPEN_PATIENCE = 10.0
"""Seconds in which conmon must have opened a log file anew."""


class Commands:
    """Acts on running containers; any number at once."""

    def __init__(self, abilities: Abilities, pods: Pods, runtime: OciRuntime, hooks: Hooks) -> None:
        self._abilities = abilities
        self._pods = pods
        self._runtime = runtime
        self._hooks = hooks

    async def exec_sync(self, container_id: str, command: list[str], timeout: float) -> ExecResult:
        """Run a command in a running container and collect its output (CRI ExecSync); timeout 0 means none."""
        container = self.running(container_id)
        if not command:
            raise InvalidArgument("cmd", "must not be empty")
        pod = self._pods.pod_of(container)
        return await self._runtime.exec(pod.namespaces, container.id, container.bundle, command, timeout or None)

    async def reopen_log(self, container_id: str) -> None:
        """Write on to a new file at the log path, and return when it is there (CRI ReopenContainerLog)."""
        container = self.running(container_id)
        self._runtime.reopen_log(container.bundle)
        log_path = Path(container.value.log_path)
        try:
            async with asyncio.timeout(REOPEN_PATIENCE):
                while container.value.log_path and not log_path.exists():
                    await asyncio.sleep(0.005)
        except TimeoutError:
            raise DeadlineExceeded(f"container {container.id}: conmon did not open {log_path} anew") from None

    async def update_resources(self, container_id: str, changes: Resources) -> None:
        """Change a container's limits (CRI UpdateContainerResources); what is not said stays as it is.

        InvalidArgument for values that make no sense, FailedPrecondition for a container that has ended, and the
        OCI runtime's words when the kernel does not take the values; nothing is recorded then.
        """
        validation.check_resources("linux", changes)
        container = self._pods.container(container_id)
        pod = self._pods.pod_of(container)
        changes = await self._hooks.update_container(pod, container, changes)
        await self.set_limits(container.id, changes)
        await self._hooks.updated_container(pod, container)

    async def set_limits(self, container_id: str, changes: Resources) -> None:
        """As `update_resources`, and nobody is told."""
        validation.check_resources("linux", changes)
        container = self._pods.container(container_id)
        async with container.limits_lock:
            wanted = container.value.config.resources.updated(changes)
            if container.value.state is ContainerState.RUNNING:
                pod = self._pods.pod_of(container)
                await self._runtime.update(pod.namespaces, container.id, wanted)
            elif container.value.state is ContainerState.CREATED:
                document = spec.with_limits(container.bundle.spec.read_bytes(), wanted, self._abilities)
                container.bundle.spec.write_bytes(document)
            else:
                raise FailedPrecondition(f"container {container.id} has ended")
            config = replace(container.value.config, resources=wanted)
            self._pods.save_container(container, replace(container.value, config=config))

    def running(self, container_id: str) -> LiveContainer:
        """The container when it runs; NotFound or FailedPrecondition."""
        container = self._pods.container(container_id)
        if container.value.state is not ContainerState.RUNNING:
            raise FailedPrecondition(f"container {container.id} is {container.value.state.value}, not running")
        return container
