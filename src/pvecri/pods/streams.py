# SPDX-License-Identifier: Apache-2.0
"""Exec, Attach and PortForward: the session that the streaming server runs when the client connects."""

from __future__ import annotations

from functools import partial

from pvecri.model import NamespaceMode, SandboxPhase
from pvecri.oci.port_forward import PodPorts
from pvecri.oci.runtime import OciRuntime
from pvecri.oci.sessions import AttachSession, DetachedConnections, ExecSession
from pvecri.pods.registry import PodEntry, Registry


class Streams:
    """Creates sessions. A container or pod in the wrong state fails the CRI call, not the later connection."""

    def __init__(self, registry: Registry, runtime: OciRuntime) -> None:
        self._registry = registry
        self._runtime = runtime
        self._detached = DetachedConnections()

    def exec(self, container_id: str, command: list[str], *, tty: bool) -> ExecSession:
        """A command for a running container (CRI Exec); NotFound or FailedPrecondition."""
        container = self._registry.running_container(container_id)
        pod = self._registry.pod_of(container)
        return ExecSession(self._runtime, pod.namespaces, container.id, container.bundle, command, tty)

    def attach(self, container_id: str) -> AttachSession:
        """The streams of a running container (CRI Attach); NotFound or FailedPrecondition."""
        container = self._registry.running_container(container_id)
        stdin_once = container.value.config.stdin_once
        return AttachSession(self._runtime, container.id, container.bundle, stdin_once, self._detached)

    def ports(self, sandbox_id: str) -> PodPorts:
        """The ports of a ready pod (CRI PortForward); NotFound or FailedPrecondition."""
        pod = self._registry.ready_pod(sandbox_id)
        host = pod.value.config.security.namespaces.network is NamespaceMode.NODE
        return PodPorts(pod.id, None if host else pod.namespace("net"), partial(_runs, pod))


def _runs(pod: PodEntry) -> bool:
    return pod.value.phase is SandboxPhase.READY and pod.alive
