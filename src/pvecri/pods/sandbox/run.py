# SPDX-License-Identifier: Apache-2.0
"""RunPodSandbox, StopPodSandbox and RemovePodSandbox: the life of a pod as a Proxmox container."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from msgspec.structs import replace

from pvecri.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, PvecriError
from pvecri.model import (
    NamespaceMode,
    ProxmoxInterface,
    Resources,
    Sandbox,
    SandboxConfig,
    SandboxId,
    SandboxMetadata,
    SandboxPhase,
    UserNamespaceDecision,
    UserNamespaceKind,
)
from pvecri.network import hostports
from pvecri.network.manager import NetworkManager
from pvecri.pods import files, user_namespaces, validation
from pvecri.pods.container.lifecycle import Containers
from pvecri.pods.container.pause import Pauses
from pvecri.pods.container.volume_owners import VolumeProbe
from pvecri.pods.hooks import Hooks
from pvecri.pods.registry import LivePod, Pods
from pvecri.pods.sandbox.ct import Cts
from pvecri.pods.sandbox.ct_tags import CtTags
from pvecri.pods.user_namespaces import Policy

log = logging.getLogger(__name__)


class Sandboxes:
    """Makes and removes pod sandboxes. Calls for one pod wait for each other; different pods run at once."""

    def __init__(
        self,
        pods: Pods,
        cts: Cts,
        network: NetworkManager,
        containers: Containers,
        pauses: Pauses,
        policy: Policy,
        volumes: VolumeProbe,
        tags: CtTags,
        hooks: Hooks,
        default_sysctls: Mapping[str, str],
    ) -> None:
        self._pods = pods
        self._cts = cts
        self._network = network
        self._containers = containers
        self._pauses = pauses
        self._policy = policy
        self._volumes = volumes
        self._tags = tags
        self._hooks = hooks
        self._default_sysctls = default_sysctls
        self.leftovers = asyncio.Event()
        """Set when a pod is left in the phase REMOVING because a part of it could not be removed."""

    # -- run --------------------------------------------------------------------------------------------------

    async def run(self, config: SandboxConfig, runtime_handler: str) -> SandboxId:
        """Make and start a pod (CRI RunPodSandbox).

        InvalidArgument names a bad field; AlreadyExists when a pod has the name or a host port. Whatever step
        fails, what the steps before it made is removed again, in reverse order.
        """
        validation.check_sandbox(config, runtime_handler, user_namespaces.handlers(self._policy.settings))
        interface = self._network.interface_of(config)
        await self._check_network(config, interface)
        unmappable = await asyncio.to_thread(self._volumes.unmappable, config.metadata.uid)
        pod = self._reserve(config, runtime_handler, interface, unmappable)
        async with pod.lock, AsyncExitStack() as undo:
            undo.callback(self._forget, pod)
            await self._make_ct(pod, interface, undo)
            await self._make_namespaces(pod, interface, undo)
            await self._apply_sysctls(pod)
            await self._attach_network(pod, undo)
            await asyncio.to_thread(files.write_files, pod)
            undo.push_async_callback(self._hooks.remove_pod, pod)
            await self._hooks.run_pod(pod)
            self._pods.save_pod(pod, replace(pod.value, phase=SandboxPhase.READY))
            self.watch(pod)
            undo.pop_all()
        self._tags.wanted.set()
        return pod.id

    async def _check_network(self, config: SandboxConfig, interface: ProxmoxInterface | None) -> None:
        """FailedPrecondition when the pod could not be attached: better known before Proxmox has made its CT."""
        if config.security.namespaces.network is NamespaceMode.NODE:
            return
        if interface is not None and not interface.beside_cni:
            return
        status = await self._network.status()
        if not status.ready:
            raise FailedPrecondition(status.message)

    def _check_host_ports(self, config: SandboxConfig) -> None:
        """AlreadyExists when another pod has a host port that this one wants: the plugins would not notice.

        The ports of a pod on the node's network are its processes' own; the kernel gives them out.
        """
        if config.security.namespaces.network is NamespaceMode.NODE:
            return
        for pod in self._pods.pods():
            if not (pod.value.networked or pod.value.phase is SandboxPhase.CREATING):
                continue
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
    ) -> LivePod:
        """Take the host ports and the name, and write down the intent; no other call comes in between."""
        self._check_host_ports(config)
        decision = self._decide(config, runtime_handler, unmappable)
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
        pod = self._pods.add_pod(sandbox)
        log.info(
            "pod %s: user namespace %s (%s): %s",
            sandbox.name,
            decision.kind.value,
            decision.reason.value,
            decision.detail,
        )
        return pod

    def _decide(
        self, config: SandboxConfig, runtime_handler: str, unmappable: Sequence[str]
    ) -> UserNamespaceDecision:
        """The pod's user namespace, with IDs that no other pod has if pvecri chooses them."""
        decision = self._policy.decide(
            config,
            runtime_handler,
            missing_ids=self._missing_ids(config.metadata),
            unmappable=unmappable,
        )
        if decision.kind is UserNamespaceKind.POD and not decision.mappings:
            used = [entry for pod in self._pods.pods() for entry in pod.value.user_namespace.mappings]
            own = user_namespaces.own_mappings(decision, self._policy.settings, used)
            decision = replace(decision, mappings=own)
        return decision

    def _missing_ids(self, metadata: SandboxMetadata) -> set[int]:
        """What containers of the pod's earlier sandboxes needed and their user namespace did not have."""
        return {
            each
            for pod in self._pods.pods()
            if replace(pod.value.config.metadata, attempt=metadata.attempt) == metadata
            for each in (*pod.value.missing_ids, *pod.value.user_namespace.extra_ids)
        }

    async def move(self, pod: LivePod, ids: Sequence[int]) -> None:
        """Stop a pod whose user namespace lacks IDs; its next sandbox gets one that has them (decision 0066)."""
        async with pod.lock:
            missing = tuple(sorted({*pod.value.missing_ids, *ids}))
            self._pods.save_pod(pod, replace(pod.value, missing_ids=missing))
            if self._holds_something(pod):
                await self._stop(pod)

    async def _make_ct(self, pod: LivePod, interface: ProxmoxInterface | None, undo: AsyncExitStack) -> None:
        # Pushed before the call: a create that is cut off may have made the CT all the same.
        undo.push_async_callback(_logged, self._cts.destroy, pod)
        undo.push_async_callback(_logged, self._cts.stop, pod)
        await self._cts.create(pod, interface)

    async def _make_namespaces(
        self, pod: LivePod, interface: ProxmoxInterface | None, undo: AsyncExitStack
    ) -> None:
        """Pin the namespaces of the pod: its CT's, or those that its pause container makes for it."""
        assert pod.init is not None
        init = holder = pod.init.pid
        decision = pod.value.user_namespace
        if decision.kind is UserNamespaceKind.POD:
            self._pods.save_pod(pod, replace(pod.value, mappings=decision.mappings))
        undo.callback(files.remove_files, pod)
        undo.callback(self._pauses.forget, pod)
        await asyncio.to_thread(files.make_directory, pod)
        await asyncio.to_thread(files.pin_namespaces, pod, init, ["pid"])
        if decision.kind is UserNamespaceKind.POD:
            holder = await self._pauses.start(pod)
            if interface is not None:
                await self._network.move_interface(interface, Path(f"/proc/{init}/ns/net"), holder)
        await asyncio.to_thread(files.pin_namespaces, pod, holder, files.OF_HOLDER)
        await asyncio.to_thread(files.set_hostname, pod)

    async def _apply_sysctls(self, pod: LivePod) -> None:
        for failure in await asyncio.to_thread(files.set_default_sysctls, pod, self._default_sysctls):
            log.warning("pod %s: runtime.default_sysctls: %s", pod.value.name, failure)
        if not pod.value.config.sysctls:
            return
        process = await asyncio.create_subprocess_exec(
            *files.sysctl_command(pod), stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
        )
        _, said = await process.communicate()
        if process.returncode:
            raise InvalidArgument("config.linux.sysctls", said.decode(errors="replace").strip())

    async def _attach_network(self, pod: LivePod, undo: AsyncExitStack) -> None:
        if pod.value.config.security.namespaces.network is NamespaceMode.NODE:
            return
        self._pods.save_pod(pod, replace(pod.value, networked=True))
        undo.push_async_callback(_logged, self._detach_network, pod)
        network = await self._network.attach(pod.id, pod.namespace("net"), pod.value.config)
        self._pods.save_pod(pod, replace(pod.value, ips=network.ips))

    # -- stop and remove --------------------------------------------------------------------------------------

    async def stop(self, sandbox_id: str) -> None:
        """Stop a pod: its containers, its network, its CT (CRI StopPodSandbox). Idempotent; unknown is fine."""
        try:
            pod = self._pods.pod(sandbox_id)
        except NotFound:
            return
        async with pod.lock:
            if self._holds_something(pod):
                await self._stop(pod)

    async def remove(self, sandbox_id: str) -> None:
        """Remove a pod and all that is in it (CRI RemovePodSandbox). Idempotent; unknown is fine.

        A pod that runs is stopped first. When a part fails the pod stays, to be removed again: by the client, or
        by itself once it is stopped.
        """
        try:
            pod = self._pods.pod(sandbox_id)
        except NotFound:
            return
        async with pod.lock:
            try:
                await self._remove(pod)
            except PvecriError:
                self.leftovers.set()
                raise

    async def update_resources(self, sandbox_id: str, resources: Resources, overhead: Resources) -> None:
        """Resize a pod's CT in place (CRI UpdatePodSandboxResources); what is not said stays as it is.

        InvalidArgument for values that make no sense, NotFound and FailedPrecondition for the pod.
        """
        validation.check_resources("resources", resources)
        validation.check_resources("overhead", overhead)
        pod = self.ready(sandbox_id)
        async with pod.lock:
            config = replace(
                pod.value.config,
                resources=pod.value.config.resources.updated(resources),
                overhead=pod.value.config.overhead.updated(overhead),
            )
            await self._hooks.update_pod(pod, resources, overhead)
            await self._cts.resize(pod, config.resources, config.overhead)
            self._pods.save_pod(pod, replace(pod.value, config=config))
            await self._hooks.updated_pod(pod)

    async def finish_removal(self, pod: LivePod) -> None:
        """Remove a pod that an earlier daemon was making or removing."""
        async with pod.lock:
            await self._remove(pod)

    async def _remove(self, pod: LivePod) -> None:
        if self._holds_something(pod):
            await self._stop(pod)
        self._pods.save_pod(pod, replace(pod.value, phase=SandboxPhase.REMOVING))
        for container in list(pod.containers.values()):
            await self._containers.discard(container)
        await _all(self._cts.destroy(pod), asyncio.to_thread(files.remove_files, pod))
        await self._hooks.remove_pod(pod)
        self._forget(pod)

    @staticmethod
    def _holds_something(pod: LivePod) -> bool:
        """Whether there is anything to stop: an earlier try may have stopped only a part."""
        return pod.value.phase is SandboxPhase.READY or pod.value.networked or pod.alive

    async def _stop(self, pod: LivePod) -> None:
        """The pod's namespaces are pinned, so its network can be taken down while its CT stops."""
        await self._containers.kill_all(pod)
        await self._hooks.stop_pod(pod)
        await _all(self._detach_network(pod), self._cts.stop(pod))
        await self._containers.settle_all(pod)
        self._pauses.forget(pod)
        await asyncio.to_thread(files.unpin_namespaces, pod)
        self._pods.save_pod(pod, replace(pod.value, phase=SandboxPhase.STOPPED))

    async def _detach_network(self, pod: LivePod) -> None:
        if not pod.value.networked:
            return
        netns = pod.namespace("net")
        await self._network.detach(pod.id, netns if netns.exists() else None, pod.value.config)
        self._pods.save_pod(pod, replace(pod.value, networked=False))

    def _forget(self, pod: LivePod) -> None:
        """Drop the pod, unless something of it is left that could not be removed: then a later try must."""
        if pod.watcher is not None:
            pod.watcher.cancel()
        if pod.value.vmid or pod.value.networked:
            self._pods.save_pod(pod, replace(pod.value, phase=SandboxPhase.REMOVING))
            self.leftovers.set()
            return
        self._pods.drop_pod(pod)

    # -- watching ---------------------------------------------------------------------------------------------

    def watch(self, pod: LivePod) -> None:
        """Notice when the CT ends by itself, or by someone's hand in Proxmox."""
        pod.watcher = asyncio.create_task(self._watch(pod), name=f"watch CT {pod.value.vmid}")

    async def _watch(self, pod: LivePod) -> None:
        assert pod.init is not None
        await pod.init.wait()
        async with pod.lock:
            if pod.value.phase is SandboxPhase.READY:
                log.warning("CT %d of pod %s ended", pod.value.vmid, pod.value.name)
                self._pods.save_pod(pod, replace(pod.value, phase=SandboxPhase.STOPPED))
                try:
                    await self._stop(pod)
                except PvecriError as error:
                    log.warning("cleaning up after CT %d: %s", pod.value.vmid, error)

    def ready(self, sandbox_id: str) -> LivePod:
        """The pod with an id when it is ready; NotFound or FailedPrecondition."""
        pod = self._pods.pod(sandbox_id)
        if pod.value.phase is not SandboxPhase.READY:
            raise FailedPrecondition(f"pod sandbox {pod.id} is not ready")
        return pod


async def _logged(undo: Callable[[LivePod], Awaitable[None]], pod: LivePod) -> None:
    """Run an undo; its failure is logged and does not hide the error that led here, nor stop the other undos."""
    try:
        await undo(pod)
    except (PvecriError, OSError) as error:
        log.warning("cleaning up pod %s (CT %d): %s", pod.value.name, pod.value.vmid, error)


async def _all(*parts: Awaitable[None]) -> None:
    """Run all to their ends, then raise the first error."""
    for outcome in await asyncio.gather(*parts, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome
