# SPDX-License-Identifier: Apache-2.0
"""The Network Manager: attaches the network namespaces of pods to the CNI network."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import msgspec

from pvecri.concurrency import finish
from pvecri.config import NetworkConfig
from pvecri.model import NamespaceMode, ProxmoxInterface, SandboxConfig, SandboxId, SandboxMetadata
from pvecri.network import addresses, interfaces, leftovers, loopback
from pvecri.network.attachment import Attachment, AttachmentStore
from pvecri.network.capabilities import capability_arguments, check_names, checked_arguments, cni_args
from pvecri.network.conflist import ConfigDirectory, Network, PluginOptions
from pvecri.network.errors import NetworkNotReady, PluginError
from pvecri.network.exclusion import Exclusion
from pvecri.network.plugins import PluginRunner
from pvecri.network.probe import ReadinessProbe
from pvecri.network.result import PodInterface, PodNetwork, pod_network
from pvecri.supervision import Supervisor, attempt

NOT_READY = "NetworkPluginNotReady"
"""The reason that CRI clients know (CRI RuntimeCondition of NetworkReady)."""


class NetworkStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Whether pods can be attached; `reason` and `message` say why not, `network` and `path` name what is used."""

    ready: bool
    reason: str = ""
    message: str = ""
    network: str = ""
    path: str = ""


class NetworkRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a pod asks of the network, read from its request once (`NetworkManager.request_of`).

    `interface` is one that Proxmox makes, if any; `arguments` and `metadata` are for the CNI plugins.
    """

    interface: ProxmoxInterface | None
    arguments: PluginOptions
    metadata: SandboxMetadata


class NetworkManager:
    """Attaches and detaches pods. One call at a time for a sandbox; any number of sandboxes at once."""

    def __init__(self, config: NetworkConfig) -> None:
        self._config = config
        self._directory = ConfigDirectory(config.conf_dir)
        self._runner = PluginRunner(config)
        self._supervisor = Supervisor()
        self._probe = ReadinessProbe(self._runner, self._supervisor)
        self._store = AttachmentStore(config.cache_dir)
        self._exclusion = Exclusion()
        self._settled: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Make network.cache_dir. A network need not be there yet: installers often come after the runtime.

        ConfigError names a network class that cannot be used.
        """
        interfaces.check_classes(self._config)
        self._store.prepare()
        settle = partial(leftovers.settle, set(self._store.sandboxes()), self._config.plugin_timeout)
        # Once: a DEL waits for it, and must not for ever.
        self._settled = self._supervisor.once("wait for earlier CNI plugins", settle)

    async def close(self) -> None:
        """Stop asking plugins for their status. Idempotent."""
        await self._supervisor.close()

    async def status(self) -> NetworkStatus:
        """Whether a pod could be attached now: some stats, and what the plugins of a 1.1 network said of late."""
        try:
            network = self._directory.network()
        except NetworkNotReady as error:
            return NetworkStatus(ready=False, reason=NOT_READY, message=str(error))
        if missing := self._runner.missing(network):
            problem = (
                f"needs the CNI plugins {', '.join(missing)}: not found in {self._runner.searched()} "
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
        """Read all that a pod asks of the network: to be called before anything of the pod is made.

        InvalidArgument names an annotation that cannot be read, asks for what there is not, or is not allowed,
        and a name that CNI cannot take. `attach` and `detach` raise none.
        """
        interface = interfaces.interface_of(sandbox, self._config)
        arguments: PluginOptions = {}
        if sandbox.security.namespaces.network is not NamespaceMode.NODE:
            check_names(sandbox.metadata)
            arguments = capability_arguments(sandbox)
        return NetworkRequest(interface=interface, arguments=arguments, metadata=sandbox.metadata)

    async def move_interface(self, interface: ProxmoxInterface, netns: Path, pid: int) -> None:
        """Take the interface that Proxmox has made from the CT's namespace to process `pid`'s, the pod's own.

        Its other end stays on the bridge. CommandError when the kernel refuses.
        """
        await addresses.move(netns, interface, pid)

    async def attach(self, sandbox_id: SandboxId, netns: Path, request: NetworkRequest) -> PodNetwork:
        """Set the pod's network up: lo, the interface that Proxmox has made if it asks for one, and CNI.

        The pod's addresses are CNI's, or those of an interface in its place.
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
        return PodNetwork(
            ips=tuple(address.partition("/")[0] for address in found),
            interfaces=(PodInterface(name=interface.name, mac=interface.mac, addresses=found),),
        )

    async def _add(self, sandbox_id: SandboxId, netns: Path, request: NetworkRequest) -> PodNetwork:
        """ADD a namespace to the CNI network.

        When it fails or is cancelled, DEL has run through the whole chain: no address and no rule is left behind.
        Raises NetworkNotReady without a network, NotFound when the namespace is gone, and PluginError with the
        plugin's own words.
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
            self._store.write(attachment)
            result = await self._runner.add(attachment)
            network = _read_result(result, attachment.network)
            self._store.write(msgspec.structs.replace(attachment, result=result))
            undo.pop_all()
        return network

    async def detach(self, sandbox_id: SandboxId, netns: Path | None, sandbox: SandboxConfig) -> None:
        """DEL a pod from the network that it was added to; of one that is not attached, nothing is left either.

        `netns` is None, or a path that is gone, when the namespace is no more: plugins then free what they hold
        outside it. Idempotent. PluginError stops at the first plugin that fails; call again. The plugins get what
        ADD got, from the record. Without one, they get what needs no reading of annotations: an earlier pvecri
        stored pods before it had read them.
        """
        await self._earlier_plugins_ended()
        path = str(netns) if netns is not None and netns.exists() else ""
        attachment = self._store.read(sandbox_id)
        if attachment is None:
            if interfaces.asks_for_interface(sandbox):
                return
            try:
                network = self._directory.network()
            except NetworkNotReady:
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
            self._store.remove(sandbox_id)

    async def release(self, sandbox_id: SandboxId) -> None:
        """DEL the recorded attachment of a sandbox that is no more, and with it its namespace. Idempotent."""
        await self._earlier_plugins_ended()
        attachment = self._store.read(sandbox_id)
        async with self._exclusion.shared():
            if attachment is not None:
                await self._runner.delete(msgspec.structs.replace(attachment, netns=""))
            self._store.remove(sandbox_id)

    async def _earlier_plugins_ended(self) -> None:
        if self._settled is not None:
            await asyncio.shield(self._settled)

    async def collect_garbage(self, known: Collection[SandboxId]) -> None:
        """Have the plugins free what none of the pods holds that are `known`, or attached meanwhile. Idempotent.

        Attachments that are recorded and whose pod is not known are DELeted first, so that nothing is lost with
        networks that have no GC (before 1.1) or disable it. PluginError with the plugin's own words.
        """
        for sandbox_id in set(self._store.sandboxes()).difference(known):
            await self.release(sandbox_id)
        async with self._exclusion.alone():
            try:
                network = self._directory.network()
            except NetworkNotReady:
                return
            recorded = (self._store.read(sandbox_id) for sandbox_id in self._store.sandboxes())
            valid = [each for each in recorded if each is not None and each.network.name == network.name]
            await self._runner.collect(network, valid)

    async def check(self, sandbox_id: SandboxId) -> None:
        """CHECK that a pod is still attached as it was. PluginError says what is wrong."""
        attachment = self._store.read(sandbox_id)
        if attachment is not None and attachment.result:
            await self._runner.check(attachment)

    def attached(self) -> list[SandboxId]:
        """The sandboxes that are attached or were being attached: one that nobody knows is to be detached."""
        return self._store.sandboxes()

    def network_of(self, sandbox_id: SandboxId) -> PodNetwork | None:
        """How a sandbox is attached, from the record; None when it is not."""
        attachment = self._store.read(sandbox_id)
        return pod_network(attachment.result) if attachment is not None and attachment.result else None

    async def _undo_add(self, attachment: Attachment) -> None:
        """After a failed ADD. When this fails too the record stays, so that a later detach tries again."""
        await finish(self._undo(attachment))

    async def _undo(self, attachment: Attachment) -> None:
        delete = partial(self._runner.delete, attachment, best_effort=True)
        doing = f"sandbox {attachment.sandbox_id}: undoing a failed attach"
        if await attempt(delete, "undo of RunPodSandbox", doing) is None:
            self._store.remove(attachment.sandbox_id)


def _read_result(result: bytes, network: Network) -> PodNetwork:
    try:
        return pod_network(result)
    except ValueError as error:
        raise PluginError(network.plugins[-1].type, "ADD", network.path, str(error)) from error
