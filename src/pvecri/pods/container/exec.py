# SPDX-License-Identifier: Apache-2.0
"""ExecSync and ReopenContainerLog: calls that conmon and the OCI runtime answer for a running container."""

from __future__ import annotations

import asyncio
from pathlib import Path

from pvecri.concurrency import in_own_thread
from pvecri.errors import DeadlineExceeded, InvalidArgument
from pvecri.observability import correlation
from pvecri.oci.runtime import ExecResult, OciRuntime
from pvecri.pods import validation
from pvecri.pods.registry import Registry

REOPEN_TIMEOUT = 10.0
"""Seconds within which conmon must have created the new log file."""


class ContainerExec:
    """Acts on running containers; any number at once."""

    def __init__(self, registry: Registry, runtime: OciRuntime) -> None:
        self._registry = registry
        self._runtime = runtime

    async def exec_sync(self, container_id: str, command: list[str], timeout: float) -> ExecResult:
        """Run a command in a running container and collect its output (CRI ExecSync).

        `timeout` is in seconds, 0 or less for none. InvalidArgument for arguments that execve(2) cannot take.
        """
        container = self._registry.running_container(container_id)
        if not command:
            raise InvalidArgument("cmd", "must not be empty")
        validation.check_arguments("cmd", command)
        pod = self._registry.pod_of(container)
        limit = timeout if timeout > 0 else None
        with correlation.span("OCI runtime exec"):
            return await self._runtime.exec(pod.namespaces, container.id, container.bundle, command, limit)

    async def reopen_log(self, container_id: str) -> None:
        """Have conmon reopen the log path, and return once the file exists (CRI ReopenContainerLog)."""
        container = self._registry.running_container(container_id)
        self._runtime.reopen_log(container.bundle)
        log_path = Path(container.value.log_path)
        try:
            async with asyncio.timeout(REOPEN_TIMEOUT):
                # conmon does not answer: it reads the command from a FIFO.
                while container.value.log_path and not await in_own_thread(log_path.exists):
                    await asyncio.sleep(0.005)
        except TimeoutError:
            raise DeadlineExceeded(f"container {container.id}: conmon did not reopen {log_path}") from None
