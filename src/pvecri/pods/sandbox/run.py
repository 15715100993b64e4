# SPDX-License-Identifier: Apache-2.0
"""RunPodSandbox: creates a pod's CT, its namespaces, its network and its files, step by step."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, AsyncExitStack
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from pvecri.concurrency import in_own_thread
from pvecri.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from pvecri.linux import programs
from pvecri.model import (
    NamespaceMode,
    ProxmoxInterface,
    Sandbox,
    SandboxConfig,
    SandboxId,
    SandboxMetadata,
    SandboxPhase,
    UserNamespaceDecision,
    UserNamespaceKind,
)
from pvecri.network import hostports
from pvecri.network.manager import NetworkManager, NetworkRequest
from pvecri.observability import correlation, metrics
from pvecri.pods import files, user_namespaces, validation
from pvecri.pods.container.pause import Pauses
from pvecri.pods.container.volume_owners import VolumeProbe
from pvecri.pods.hooks import Hooks
from pvecri.pods.registry import PodEntry, Registry
from pvecri.pods.sandbox.ct import SandboxCts
from pvecri.pods.sandbox.ct_tags import CtTags
from pvecri.pods.sandbox.stop import SandboxTeardown, remove_files
from pvecri.pods.user_namespaces import Policy
from pvecri.pods.warm.pool import WarmPool
from pvecri.supervision import attempt

log = logging.getLogger(__name__)

SYSCTL_TIMEOUT = 30.0


class SandboxRunner:
    """Creates pod sandboxes; any number at once."""

    def __init__(
        self,
        registry: Registry,
        cts: SandboxCts,
        network: NetworkManager,
        pauses: Pauses,
        policy: Policy,
        volumes: VolumeProbe,
        tags: CtTags,
        hooks: Hooks,
        teardown: SandboxTeardown,
        warm: WarmPool,
        default_sysctls: Mapping[str, str],
    ) -> None:
        self._registry = registry
        self._cts = cts
        self._network = network
        self._pauses = pauses
        self._policy = policy
        self._volumes = volumes
        self._tags = tags
        self._hooks = hooks
        self._teardown = teardown
        self._warm = warm
        self._default_sysctls = default_sysctls

    async def run(self, config: SandboxConfig, runtime_handler: str) -> SandboxId:
        """Create and start a pod sandbox (CRI RunPodSandbox).

        InvalidArgument names a bad field; AlreadyExists if a sandbox has the name or a host port. If a step fails
        or the call is cancelled, the steps before it are undone in reverse order.
        """
        validation.check_sandbox(config, runtime_handler, user_namespaces.handlers(self._policy.settings))
        request = self._network.request_of(config)
        interface = request.interface
        await self._check_network(config, interface)
        unmappable = await in_own_thread(partial(self._volumes.unmappable, config.metadata.uid))
        reserve = partial(self._reserve, config, runtime_handler, interface, unmappable)
        pod = await self._warm.obtain(reserve, partial(self._start, request))
        self._tags.wanted.set()
        return pod.id

    async def _start(self, request: NetworkRequest, pod: PodEntry) -> None:
        """The steps of `run` after the reservation. WarmCtLost for a pod whose CT cannot be used."""
        claimed = pod.init is not None
        async with pod.lock, AsyncExitStack() as undo:
            # Undone last: the CT is left to ct_removals.py, or all if another undo has failed.
            undo.callback(self._teardown.drop, pod)
            # Pushed before the call: a create that is cancelled may have created the CT all the same.
            undo.push_async_callback(_log_failure, self._cts.stop, pod)
            if not claimed:
                with _timed("ct"):
                    await self._cts.create(pod, request.interface)
            async with self._warm.handing_over(pod):
                with _timed("namespaces"):
                    await self._pin_namespaces(pod, request.interface, undo, claimed=claimed)
                # Before the network: an interface copies net.*.conf.default when it is created.
                await self._set_sysctls(pod, of_interfaces=False)
                with _timed("network"):
                    await self._attach_network(pod, request, undo)
            await self._set_sysctls(pod, of_interfaces=True)
            # After the network: /etc/hosts has the pod's addresses.
            await asyncio.to_thread(files.write_files, pod)
            # Pushed before: some plugins may have been notified of the pod before another one refuses it.
            undo.push_async_callback(self._hooks.remove_pod, pod)
            with _timed("nri"):
                await self._hooks.run_pod(pod)
            self._registry.save_pod(pod, replace(pod.value, phase=SandboxPhase.READY))
            # Not before READY: until then the end of the CT fails a step, and that undoes all.
            self._teardown.watch(pod)
            undo.pop_all()

    # -- before the first step --------------------------------------------------------------------------------

    async def _check_network(self, config: SandboxConfig, interface: ProxmoxInterface | None) -> None:
        """FailedPrecondition if CNI is not ready: checked before Proxmox spends a task on the CT."""
        if config.security.namespaces.network is NamespaceMode.NODE:
            return
        if interface is not None and not interface.beside_cni:  # it replaces CNI
            return
        status = await self._network.status()
        if not status.ready:
            raise FailedPrecondition(status.message)

    def _check_host_ports(self, config: SandboxConfig) -> None:
        """AlreadyExists if another pod has one of the host ports.

        Checked here because the CNI plugin portmap adds a second DNAT rule for a port without an error. The ports
        of a pod in the node's network namespace are its processes' own sockets; the kernel refuses duplicates.
        """
        if config.security.namespaces.network is NamespaceMode.NODE or not config.port_mappings:
            return
        for pod in self._registry.with_host_ports():
            if not (pod.value.networked or pod.value.phase is SandboxPhase.CREATING):
                continue  # DEL has freed its ports
            other = pod.value.config
            if other.security.namespaces.network is NamespaceMode.NODE:
                continue
            if refused := hostports.conflict(config.port_mappings, other.port_mappings):
                raise AlreadyExists(
                    f"host {hostports.describe(refused)} is taken by pod "
                    f"{other.metadata.namespace}/{other.metadata.name} ({pod.id})"
                )

    def _reserve(
        self,
        config: SandboxConfig,
        runtime_handler: str,
        interface: ProxmoxInterface | None,
        unmappable: Sequence[str],
        *,
        warm: bool,
    ) -> PodEntry:
        """Reserve the name, the host ports, the ID range and with `warm` a CT; store the sandbox as CREATING.

        Does not await: no other call runs between the checks and the reservation.
        """
        self._check_host_ports(config)
        decision = self._decide_user_namespace(config, runtime_handler, unmappable)
        user_namespaces.check_interface(decision, interface)
        sandbox = Sandbox(
            id=SandboxId(secrets.token_hex(32)),
            config=config,
            created_at=time.time_ns(),
            phase=SandboxPhase.CREATING,
            runtime_handler=runtime_handler,
            # A user namespace other than the CT's cannot nest in the PID namespace of an unprivileged CT.
            privileged=decision.kind is not UserNamespaceKind.CT,
            user_namespace=decision,
        )
        claimed = self._warm.claim(sandbox, interface) if warm else None
        pod = claimed or self._registry.add_pod(sandbox)
        correlation.annotate(pod_id=pod.id, vmid=str(pod.value.vmid or ""))
        log.info(
            "pod %s: user namespace %s (%s): %s",
            sandbox.name,
            decision.kind.value,
            decision.reason.value,
            decision.detail,
        )
        return pod

    def _decide_user_namespace(
        self, config: SandboxConfig, runtime_handler: str, unmappable: Sequence[str]
    ) -> UserNamespaceDecision:
        """The pod's user namespace; if pvecri chooses its host IDs, a range that no other pod has."""
        decision = self._policy.decide(
            config,
            runtime_handler,
            missing_ids=self._missing_ids(config.metadata),
            unmappable=unmappable,
        )
        if decision.kind is UserNamespaceKind.POD and not decision.mappings:
            # From the decisions, not from `Sandbox.mappings`: those are set only when the CT runs.
            used = [entry for pod in self._registry.pods() for entry in pod.value.user_namespace.mappings]
            own = user_namespaces.own_mappings(decision, self._policy.settings, used)
            decision = replace(decision, mappings=own)
        return decision

    def _missing_ids(self, metadata: SandboxMetadata) -> set[int]:
        """The IDs that containers of the pod's earlier sandboxes needed and their user namespace lacked."""
        return {
            each
            for pod in self._registry.attempts(metadata)
            for each in (*pod.value.missing_ids, *pod.value.user_namespace.extra_ids)
        }

    # -- steps ------------------------------------------------------------------------------------------------

    async def _pin_namespaces(
        self, pod: PodEntry, interface: ProxmoxInterface | None, undo: AsyncExitStack, *, claimed: bool
    ) -> None:
        """Pin the pod's namespaces: the CT's, or those that the pod's pause container creates."""
        assert pod.init is not None
        init = owner = pod.init.pid
        decision = pod.value.user_namespace
        if decision.kind is UserNamespaceKind.POD:
            self._registry.save_pod(pod, replace(pod.value, mappings=decision.mappings))
        undo.push_async_callback(_log_failure, remove_files, pod)
        undo.callback(self._pauses.forget, pod)
        await asyncio.to_thread(files.take_directory if claimed else files.make_directory, pod)
        if decision.kind is UserNamespaceKind.POD:
            owner = await self._pauses.start(pod)
            if interface is not None:
                # Proxmox put it into the CT's network namespace, which this pod does not use.
                await self._network.move_interface(interface, Path(f"/proc/{init}/ns/net"), owner)
        await asyncio.to_thread(files.pin_namespaces, pod, owner, files.OF_POD)
        await asyncio.to_thread(files.set_hostname, pod)

    async def _set_sysctls(self, pod: PodEntry, *, of_interfaces: bool) -> None:
        """Set the default sysctls and the pod's own; those of network interfaces exist only after CNI ADD."""
        if files.sysctls_of(self._default_sysctls, interfaces=of_interfaces):
            failures = await asyncio.to_thread(
                files.set_default_sysctls, pod, self._default_sysctls, of_interfaces=of_interfaces
            )
            for failure in failures:
                log.warning("pod %s: runtime.default_sysctls: %s", pod.value.name, failure)
        own = files.sysctls_of(pod.value.config.sysctls, interfaces=of_interfaces)
        if not own:
            return
        environment = {**os.environ, "LC_ALL": "C"}
        ended = await programs.run(files.sysctl_command(pod, own), timeout=SYSCTL_TIMEOUT, env=environment)
        if ended.returncode:
            name, reason = files.refused_sysctl(ended)
            problem = f"the kernel refuses {own[name]!r}: {reason}" if name in own else reason
            raise InvalidArgument(f"config.linux.sysctls[{name}]" if name else "config.linux.sysctls", problem)

    async def _attach_network(self, pod: PodEntry, request: NetworkRequest, undo: AsyncExitStack) -> None:
        if pod.value.config.security.namespaces.network is NamespaceMode.NODE:
            return
        # Stored first: after a crash during ADD, the removal of the pod must run DEL.
        self._registry.save_pod(pod, replace(pod.value, networked=True))
        undo.push_async_callback(_log_failure, self._teardown.detach_network, pod)
        network = await self._network.attach(pod.id, pod.namespace("net"), request)
        self._registry.save_pod(pod, replace(pod.value, ips=network.ips))


def _timed(step: str) -> AbstractContextManager[object]:
    """Time the body as this step of RunPodSandbox."""
    return metrics.POD_STEP_SECONDS.labels(step).time()


async def _log_failure(undo: Callable[[PodEntry], Awaitable[None]], pod: PodEntry) -> None:
    """Run an undo. Its failure is logged: it must not replace the error of the step, nor skip the other undos."""
    action = f"undoing pod {pod.value.name} (CT {pod.value.vmid})"
    await attempt(partial(undo, pod), "undo of RunPodSandbox", action)
