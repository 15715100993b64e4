# SPDX-License-Identifier: Apache-2.0
"""What a client of Exec, Attach or PortForward is joined to, once it comes."""

from __future__ import annotations

from pvecri.model import NamespaceMode
from pvecri.oci.forwarding import PodPorts
from pvecri.oci.runtime import OciRuntime
from pvecri.oci.sessions import AttachSession, ExecSession, FormerClients
from pvecri.pods.container.exec import Commands
from pvecri.pods.registry import Pods
from pvecri.pods.sandbox.run import Sandboxes


class Streams:
    """Looks up what a call names, in the state that the call needs."""

    def __init__(self, pods: Pods, runtime: OciRuntime, commands: Commands, sandboxes: Sandboxes) -> None:
        self._pods = pods
        self._runtime = runtime
        self._commands = commands
        self._sandboxes = sandboxes
        self._former = FormerClients()

    def exec(self, container_id: str, command: list[str], *, tty: bool) -> ExecSession:
        """A command for a running container (CRI Exec); NotFound or FailedPrecondition."""
        container = self._commands.running(container_id)
        pod = self._pods.pod_of(container)
        return ExecSession(self._runtime, pod.namespaces, container.id, container.bundle, command, tty)

    def attach(self, container_id: str) -> AttachSession:
        """The streams of a running container (CRI Attach); NotFound or FailedPrecondition."""
        container = self._commands.running(container_id)
        stdin_once = container.value.config.stdin_once
        return AttachSession(self._runtime, container.id, container.bundle, stdin_once, self._former)

    def ports(self, sandbox_id: str) -> PodPorts:
        """The ports of a ready pod (CRI PortForward); NotFound or FailedPrecondition."""
        pod = self._sandboxes.ready(sandbox_id)
        host = pod.value.config.security.namespaces.network is NamespaceMode.NODE
        return PodPorts(None if host else pod.namespace("net"))
