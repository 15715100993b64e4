# SPDX-License-Identifier: Apache-2.0
"""The Network Manager: attaches the network namespaces of pods to the CNI network."""

from __future__ import annotations

import asyncio
import glob
import logging
from collections.abc import Collection
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import msgspec

from pvecri.concurrency import finish
from pvecri.config.settings import NetworkConfig
from pvecri.model import NamespaceMode, ProxmoxInterface, SandboxConfig, SandboxId, SandboxMetadata
from pvecri.network import addresses, earlier_plugins, interfaces, loopback
from pvecri.network.attachment import Attachment, AttachmentStore
from pvecri.network.capabilities import capability_arguments, check_names, checked_arguments, cni_args
from pvecri.network.conflist import ConfigDirectory, Network, PluginOptions
from pvecri.network.errors import NetworkNotReady, PluginError, RecordsUnavailable
from pvecri.network.exclusion import Exclusion
from pvecri.network.plugins import PluginRunner
from pvecri.network.probe import ReadinessProbe
from pvecri.network.result import PodNetwork, pod_network
from pvecri.supervision import Supervisor, attempt, report

log = logging.getLogger(__name__)

RESULTS_OF_OTHERS = Path("/var/lib/cni/results")
"""Where libcni, in CRI-O, containerd and podman, records attachments: NETWORK-CONTAINER-INTERFACE."""

NOT_READY = "NetworkPluginNotReady"
DETACH = "detach of network"
"""RuntimeCondition.reason of NetworkReady, as CRI-O and containerd have it."""


class NetworkStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Whether pods can be attached; else `reason` and `message`. `network` and `path` name the configuration."""

    ready: bool
    reason: str = ""
    message: str = ""
    network: str = ""
    path: str = ""


class NetworkRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A pod's network configuration, parsed once from its request (`NetworkManager.request_of`).

    `interface` is the Proxmox interface, if any; `arguments` and `metadata` are for the CNI plugins.
    """

    interface: ProxmoxInterface | None
    arguments: PluginOptions
    metadata: SandboxMetadata


class NetworkManager:
    """Attaches and detaches pods. Callers serialize calls for one sandbox; any number of sandboxes at once."""

    def __init__(self, config: NetworkConfig) -> None:
        self._config = config
        self._directory = ConfigDirectory(config.conf_dir)
        self._runner = PluginRunner(config)
        self._supervisor = Supervisor()
        self._probe = ReadinessProbe(self._runner, self._supervisor)
        self._store = AttachmentStore(config.cache_dir)
        self._exclusion = Exclusion()
        self._attached_earlier: frozenset[str] = frozenset()
        """The sandboxes for which plugins of the previous daemon process may run."""
        self._earlier_plugins: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Create network.cache_dir. A CNI configuration need not exist yet: DaemonSets install it later.

        ConfigError names an invalid network class.
        """
        interfaces.check_classes(self._config)
        self._store.prepare()
        self._attached_earlier = frozenset(self._store.sandboxes())

    def await_earlier_plugins(self) -> asyncio.Task[None]:
        """Wait in the background for plugins of the previous daemon process, as the first DEL does. Idempotent.

        It reads the environment of every process of the node.
        """
        if self._earlier_plugins is None:
            wait = partial(earlier_plugins.wait_for_exit, self._attached_earlier, self._config.plugin_timeout)
            # Once: a DEL waits for it, and must not wait forever.
            self._earlier_plugins = self._supervisor.once("wait for earlier CNI plugins", wait)
        return self._earlier_plugins

    async def close(self) -> None:
        """Stop the background tasks. Idempotent."""
        await self._supervisor.close()

    async def status(self) -> NetworkStatus:
        """Whether a pod can be attached now; checks the files, and caches STATUS of a 1.1 network's plugins."""
        try:
            network = self._directory.network()
        except NetworkNotReady as error:
            return NetworkStatus(ready=False, reason=NOT_READY, message=str(error))
        if missing := self._runner.missing(network):
            problem = (
                f"needs the CNI plugins {', '.join(missing)}: not found in {self._runner.search_path()} "
                "(network.bin_dirs)"
            )
        else:
            problem = await self._probe.problem(network)
        if not problem:
            return NetworkStatus(ready=True, network=network.name, path=network.path)
        message = f"the network {network.name} ({network.path}): {problem}"
        return NetworkStatus(
            ready=False, reason=NOT_READY, message=message, network=network.name, path=network.path
        )

    def request_of(self, sandbox: SandboxConfig) -> NetworkRequest:
        """Parse a pod's network configuration, before anything of the pod is created.

        InvalidArgument names an annotation that is invalid or not allowed, or a name that CNI does not accept;
        `attach` and `detach` do not raise it.
        """
        interface = interfaces.interface_of(sandbox, self._config)
        arguments: PluginOptions = {}
        if sandbox.security.namespaces.network is not NamespaceMode.NODE:
            check_names(sandbox.metadata)
            arguments = capability_arguments(sandbox)
        return NetworkRequest(interface=interface, arguments=arguments, metadata=sandbox.metadata)

    async def move_interface(self, interface: ProxmoxInterface, netns: Path, pid: int) -> None:
        """Move the Proxmox interface from the CT's network namespace `netns` to that of process `pid`.

        The veth peer stays on the bridge. CommandError if the kernel refuses.
        """
        await addresses.move(netns, interface, pid)

    async def attach(self, sandbox_id: SandboxId, netns: Path, request: NetworkRequest) -> PodNetwork:
        """Set the pod's network up: lo, the Proxmox interface that it requests, and CNI.

        Returns CNI's addresses, or those of a Proxmox interface that replaces CNI.
        """
        interface = request.interface
        await asyncio.to_thread(loopback.bring_up, netns)
        if interface is not None:
            own = await self._set_up(netns, interface)
            if not interface.beside_cni:
                return own
        return await self._add(sandbox_id, netns, request)

    async def _set_up(self, netns: Path, interface: ProxmoxInterface) -> PodNetwork:
        await addresses.configure(netns, interface)
        found = addresses.static_addresses(interface)
        if interface.ip == addresses.DHCP:
            found = (await addresses.wait_for_dhcp(netns, interface, self._config.plugin_timeout), *found)
        return PodNetwork(ips=tuple(address.partition("/")[0] for address in found))

    async def _add(self, sandbox_id: SandboxId, netns: Path, request: NetworkRequest) -> PodNetwork:
        """CNI ADD.

        If it fails or is cancelled, DEL is run through the whole chain before the error is raised. NetworkNotReady
        without a CNI configuration, NotFound if the namespace does not exist, PluginError with the plugin's
        message.
        """
        attachment = Attachment(
            sandbox_id=sandbox_id,
            netns=str(netns),
            args=cni_args(sandbox_id, request.metadata),
            arguments=request.arguments,
            network=self._directory.network(),
        )
        async with self._exclusion.shared(), AsyncExitStack() as undo:
            undo.push_async_callback(self._undo_add, attachment)
            self._store.write(attachment)  # before ADD: after a crash, recovery must run DEL (decision 0023)
            result = await self._runner.add(attachment)
            network = _read_result(result, attachment.network)
            self._store.write(msgspec.structs.replace(attachment, result=result))
            undo.pop_all()
        return network

    async def detach(self, sandbox_id: SandboxId, netns: Path | None, sandbox: SandboxConfig) -> None:
        """CNI DEL, from the network that the pod was added to. Idempotent.

        `netns` may be None or not exist any more: plugins then free only what is outside of the namespace, such as
        addresses. PluginError for the first plugin that fails, after which the record stays: call again. The
        plugins get ADD's arguments, from the record; without one that can be read, those that are not parsed from
        annotations, which an earlier pvecri did not validate before it stored a pod.
        """
        await self._earlier_plugins_ended()
        # DEL allows an empty CNI_NETNS: the namespace may have ended with the CT (CNI specification, section 2).
        path = str(netns) if netns is not None and netns.exists() else ""
        attachment = self._record(sandbox_id)
        if attachment is None:
            # Proxmox's interface goes with the CT; had CNI run beside it, there would be a record.
            if interfaces.requests_interface(sandbox):
                return
            try:
                network = self._directory.network()
            except NetworkNotReady:
                # Without a record no ADD has begun (decision 0023).
                return
            attachment = Attachment(
                sandbox_id=sandbox_id,
                netns=path,
                args=cni_args(sandbox_id, sandbox.metadata),
                arguments=checked_arguments(sandbox),
                network=network,
            )
        async with self._exclusion.shared():
            await self._runner.delete(msgspec.structs.replace(attachment, netns=path))
            # If it cannot be removed: the next start's collect_garbage runs DEL again, and removes it then.
            await attempt(
                partial(self._forget, sandbox_id), DETACH, f"sandbox {sandbox_id}: forgetting its network"
            )

    def _record(self, sandbox_id: SandboxId) -> Attachment | None:
        """The record; None also if the filesystem fails, so that a pod can be stopped all the same."""
        try:
            return self._store.read(sandbox_id)
        except RecordsUnavailable as error:
            report(error, DETACH, f"sandbox {sandbox_id}: reading its network's record")
            return None

    async def _forget(self, sandbox_id: SandboxId) -> None:
        self._store.remove(sandbox_id)

    async def release(self, sandbox_id: SandboxId) -> None:
        """CNI DEL for the recorded attachment of a sandbox that does not exist any more. Idempotent.

        Its network namespace may still be pinned: the bridge plugin removes its firewall rules only then.
        """
        await self._earlier_plugins_ended()
        attachment = self._store.read(sandbox_id)
        async with self._exclusion.shared():
            if attachment is not None:
                # CNI allows DEL without a namespace: plugins free addresses and most rules outside of it.
                netns = attachment.netns if attachment.netns and Path(attachment.netns).exists() else ""
                await self._runner.delete(msgspec.structs.replace(attachment, netns=netns))
            self._store.remove(sandbox_id)

    async def _earlier_plugins_ended(self) -> None:
        # Shared by all DELs: a cancelled one must not cancel it for the others.
        await asyncio.shield(self.await_earlier_plugins())

    async def collect_garbage(self, known: Collection[SandboxId]) -> None:
        """Free what plugins have allocated to pods other than those that are `known` or recorded. Idempotent.

        Runs DEL for recorded attachments of unknown pods first: networks before 1.1 have no GC, others may disable
        it. There is no GC of a network in which another runtime has pods: plugins would free their addresses, too.
        PluginError with the plugin's message.
        """
        # Listed before the first await: a pod that is created meanwhile is not in `known`.
        for sandbox_id in set(self._store.sandboxes()).difference(known):
            await self.release(sandbox_id)
        async with self._exclusion.exclusive():
            try:
                network = self._directory.network()
            except NetworkNotReady:
                return
            if any(RESULTS_OF_OTHERS.glob(f"{glob.escape(network.name)}-*")):
                log.info("CNI network %s has pods of another runtime: no garbage is collected", network.name)
                return
            recorded = (self._store.read(sandbox_id) for sandbox_id in self._store.sandboxes())
            # GC is per network: attachments of an earlier configuration may be to another one.
            valid = [each for each in recorded if each is not None and each.network.name == network.name]
            await self._runner.collect(network, valid)

    async def _undo_add(self, attachment: Attachment) -> None:
        """After a failed ADD. When this fails too the record stays, so that a later detach tries again."""
        await finish(self._undo(attachment))

    async def _undo(self, attachment: Attachment) -> None:
        delete = partial(self._runner.delete, attachment, best_effort=True)
        action = f"sandbox {attachment.sandbox_id}: undoing a failed attach"
        if await attempt(delete, "undo of RunPodSandbox", action) is None:
            self._store.remove(attachment.sandbox_id)


def _read_result(result: bytes, network: Network) -> PodNetwork:
    try:
        return pod_network(result)
    except ValueError as error:
        raise PluginError(network.plugins[-1].type, "ADD", network.path, str(error)) from error
