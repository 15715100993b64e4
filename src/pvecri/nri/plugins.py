# SPDX-License-Identifier: Apache-2.0
"""All plugins: implements the Pod Manager's hooks by calls to each plugin, in the order of their indices.

Events are sent one at a time, to one plugin after the other, and a new plugin is synchronized between two events:
so each plugin gets every event once, in one order (decision 0041). An error of a plugin fails the request if NRI
defines it so. A plugin that times out or disconnects is dropped, and the request continues.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

from google.protobuf.message import Message
from msgspec.structs import replace

from pvecri.config.settings import ConfigError, NriConfig
from pvecri.errors import PvecriError
from pvecri.linux import single_instance
from pvecri.model import Resources
from pvecri.nri import from_proto, launcher, to_proto
from pvecri.nri.launcher import LaunchedPlugin
from pvecri.nri.merge import Creation, Updates, copy_resources
from pvecri.nri.plugin import Plugin
from pvecri.nri.proto import nri_pb2 as pb
from pvecri.observability import metrics
from pvecri.oci.adjustment import Adjustment
from pvecri.pods.hooks import Hooks
from pvecri.pods.manager import PodManager
from pvecri.pods.registry import ContainerEntry, LifecycleEvent, PodEntry
from pvecri.supervision import Supervisor, attempt, report

log = logging.getLogger(__name__)

WORK = "NRI plugin"

UPDATE_TIMEOUT = 10.0
"""Seconds for a plugin's update of one container."""


class Plugins(Hooks):
    """Construct the Pod Manager with it, then `start` it; plugins connect and disconnect until `close`."""

    def __init__(self, config: NriConfig) -> None:
        self._config = config
        self._event_lock = asyncio.Lock()
        """Serializes events and the synchronization of new plugins."""
        self._plugins: list[Plugin] = []
        self._supervisor = Supervisor()
        self._stack = AsyncExitStack()
        self._pods: PodManager | None = None

    # -- connecting -------------------------------------------------------------------------------------------

    async def start(self, pods: PodManager) -> None:
        """Launch the pre-installed plugins and listen for others. ConfigError if nri.socket cannot be used."""
        self._pods = pods
        await self._launch_all()
        try:
            await self._listen(self._config.socket)
        except OSError as error:
            raise ConfigError(f"nri.socket: {self._config.socket}: {error.strerror or error}") from error

    async def _listen(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not await single_instance.remove_stale_socket(path):
            raise ConfigError(f"nri.socket: another process listens on {path} (nri.enabled = false disables NRI)")
        server = await asyncio.start_unix_server(self._accept, path)
        path.chmod(0o600)  # bind(2) has applied the umask only
        # Python removes the socket by itself from 3.13 on.
        self._stack.callback(path.unlink, missing_ok=True)
        self._stack.callback(server.close)
        log.info("NRI plugins may connect to %s", path)

    async def close(self) -> None:
        """Send Shutdown to every plugin, and kill the launched ones."""
        await self._stack.aclose()
        farewells = (attempt(plugin.shut_down, WORK, f"ending {plugin.name}") for plugin in self._plugins)
        await asyncio.gather(*farewells)
        await self._supervisor.close()

    async def _launch_all(self) -> None:
        """Launch and synchronize the pre-installed plugins, in order. One that fails is logged and skipped."""
        launched: list[LaunchedPlugin] = []
        for program in launcher.discover(self._config):
            try:
                launched.append(await launcher.launch(program, self._config, self._update))
            except PvecriError as error:
                log.warning("%s", error)
        # They register concurrently, for each may take nri.registration_timeout, and are synchronized in order.
        outcomes = await asyncio.gather(*(plugin.start() for plugin in launched), return_exceptions=True)
        for plugin, outcome in zip(launched, outcomes, strict=True):
            self._supervisor.once(WORK, partial(self._attend_launched, plugin), plugin.name)
            if isinstance(outcome, Exception):
                report(outcome, WORK, f"starting {plugin.name}")
                continue
            await self._synchronize(plugin)

    async def _attend_launched(self, plugin: LaunchedPlugin) -> None:
        try:
            await plugin.wait()
        finally:
            self._dismiss(plugin)
            await plugin.reap()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        plugin = Plugin(reader, writer, self._config, self._update)
        self._supervisor.once(WORK, partial(self._attend, plugin))

    async def _attend(self, plugin: Plugin) -> None:
        try:
            await plugin.start()
            await self._synchronize(plugin)
            await plugin.wait()
        finally:
            self._dismiss(plugin)

    async def _synchronize(self, plugin: Plugin) -> None:
        """Send a plugin all pods and containers; from then on it gets every event."""
        async with self._event_lock:
            pods, containers = self._known()
            try:
                updates = await plugin.synchronize(pods, containers)
            except PvecriError as error:
                log.warning("NRI plugin %s cannot be synchronized: %s", plugin.name, error)
                return
            merged = Updates()
            try:
                merged.add(updates, plugin.name)
            except PvecriError as error:
                log.warning("%s", error)
            await self._apply_updates(merged)
            self._plugins = sorted([*self._plugins, plugin], key=lambda each: each.index)
            metrics.NRI_PLUGINS.set(len(self._plugins))
        log.info("NRI plugin %s is synchronized; the order is %s", plugin.name, self._order())

    def _known(self) -> tuple[list[pb.PodSandbox], list[pb.Container]]:
        """The pods and containers that plugins were notified of and that are not removed."""
        assert self._pods is not None
        pods = [
            pod
            for pod in self._pods.registry.pods()
            if pod.notified in (LifecycleEvent.CREATED, LifecycleEvent.STOPPED)
        ]
        containers = [
            each for pod in pods for each in pod.containers.values() if each.notified is LifecycleEvent.CREATED
        ]
        return [to_proto.pod(pod) for pod in pods], [to_proto.container(each) for each in containers]

    def _dismiss(self, plugin: Plugin) -> None:
        plugin.dismiss()
        if plugin in self._plugins:
            self._plugins = [each for each in self._plugins if each is not plugin]
            metrics.NRI_PLUGINS.set(len(self._plugins))
            log.info("NRI plugin %s has disconnected", plugin.name)

    def _order(self) -> str:
        return ", ".join(plugin.name for plugin in self._plugins)

    # -- pods -------------------------------------------------------------------------------------------------

    async def run_pod(self, pod: PodEntry) -> None:
        """See Hooks."""
        async with self._event_lock:
            # Without plugins as well: one that connects later gets the pod in its list, and no event twice
            # (decision 0041).
            pod.notified = LifecycleEvent.CREATED
            if self._plugins:
                await self._send(pb.RunPodSandboxRequest(pod=to_proto.pod(pod)))

    async def update_pod(self, pod: PodEntry, resources: Resources, overhead: Resources) -> None:
        """See Hooks."""
        async with self._event_lock:
            if self._plugins:
                request = pb.UpdatePodSandboxRequest(
                    pod=to_proto.pod(pod),
                    overhead_linux_resources=to_proto.resources(overhead),
                    linux_resources=to_proto.resources(resources),
                )
                await self._send(request)

    async def updated_pod(self, pod: PodEntry) -> None:
        """See Hooks."""
        async with self._event_lock:
            if self._plugins:
                await self._notify(pb.PostUpdatePodSandboxRequest(pod=to_proto.pod(pod)))

    async def stop_pod(self, pod: PodEntry) -> None:
        """See Hooks."""
        async with self._event_lock:
            if pod.notified is LifecycleEvent.CREATED:
                pod.notified = LifecycleEvent.STOPPED
                if self._plugins:
                    await self._notify(pb.StopPodSandboxRequest(pod=to_proto.pod(pod)))

    async def remove_pod(self, pod: PodEntry) -> None:
        """See Hooks."""
        await self.stop_pod(pod)
        async with self._event_lock:
            if pod.notified is LifecycleEvent.STOPPED:
                pod.notified = LifecycleEvent.REMOVED
                if self._plugins:
                    await self._notify(pb.RemovePodSandboxRequest(pod=to_proto.pod(pod)))

    # -- containers -------------------------------------------------------------------------------------------

    async def create_container(self, pod: PodEntry, container: ContainerEntry) -> Adjustment | None:
        """See Hooks."""
        async with self._event_lock:
            # Without plugins as well, as in run_pod.
            container.notified = LifecycleEvent.CREATED
            if not self._plugins:
                return None
            request = pb.CreateContainerRequest(pod=to_proto.pod(pod), container=to_proto.container(container))
            cgroup = request.container.linux.cgroups_path
            # Chosen before the event: a plugin that is dropped during it still has to validate, and so fails it.
            validators = [plugin for plugin in self._plugins if _validates(plugin)]
            # Has copies, from before the plugins: `creation` changes the request for each of them.
            pristine = pb.ValidateContainerAdjustmentRequest(pod=request.pod, container=request.container)
            creation = Creation(request)
            evictions: list[pb.ContainerEviction] = []
            for plugin in self._plugins:
                response = await plugin.send(request)
                pristine.plugins.add(name=plugin.base, index=plugin.index)
                if response is not None:
                    creation.add(response, plugin.name)
                    evictions += response.evict
            wanted = from_proto.adjustment(creation.adjustment, cgroup)
            await _validate(validators, pristine, creation)
            self._evict(evictions)
            await self._apply_updates(creation.updates)
            return wanted

    async def created_container(self, pod: PodEntry, container: ContainerEntry) -> None:
        """See Hooks."""
        await self._notify_of(pb.PostCreateContainerRequest, pod, container)

    async def start_container(self, pod: PodEntry, container: ContainerEntry) -> None:
        """See Hooks."""
        async with self._event_lock:
            if self._plugins:
                request = pb.StartContainerRequest(pod=to_proto.pod(pod), container=to_proto.container(container))
                await self._send(request)

    async def started_container(self, pod: PodEntry, container: ContainerEntry) -> None:
        """See Hooks."""
        await self._notify_of(pb.PostStartContainerRequest, pod, container)

    async def update_container(self, pod: PodEntry, container: ContainerEntry, changes: Resources) -> Resources:
        """See Hooks."""
        async with self._event_lock:
            if not self._plugins:
                return changes
            request = pb.UpdateContainerRequest(
                pod=to_proto.pod(pod),
                container=to_proto.container(container),
                linux_resources=to_proto.resources(changes),
            )
            updates = Updates()
            for plugin in self._plugins:
                response = await plugin.send(request)
                if response is not None:
                    updates.add(response.update, plugin.name)
                    self._evict(response.evict)
                    own = updates.merged.get(container.id)
                    if own is not None:
                        # The next plugin gets the request with the changes of those before it.
                        copy_resources(own.linux.resources, request.linux_resources)
            own = updates.merged.pop(container.id, None)
            await self._apply_updates(updates)
        if own is None:
            return changes
        # NRI's resources have no OOM score.
        return replace(from_proto.resources(request.linux_resources), oom_score_adj=changes.oom_score_adj)

    async def updated_container(self, pod: PodEntry, container: ContainerEntry) -> None:
        """See Hooks."""
        await self._notify_of(pb.PostUpdateContainerRequest, pod, container)

    async def stop_container(self, pod: PodEntry, container: ContainerEntry) -> None:
        """See Hooks."""
        async with self._event_lock:
            if container.notified is not LifecycleEvent.CREATED:
                return
            container.notified = LifecycleEvent.STOPPED
            if not self._plugins:
                return
            updates = Updates()
            request = pb.StopContainerRequest(pod=to_proto.pod(pod), container=to_proto.container(container))
            for plugin in self._plugins:
                try:
                    response = await plugin.send(request)
                    if response is not None:
                        updates.add(response.update, plugin.name)
                except Exception as error:
                    report(error, WORK, request.DESCRIPTOR.name)
            await self._apply_updates(updates)

    async def remove_container(self, pod: PodEntry, container: ContainerEntry) -> None:
        """See Hooks."""
        await self.stop_container(pod, container)
        async with self._event_lock:
            if container.notified is LifecycleEvent.STOPPED:
                container.notified = LifecycleEvent.REMOVED
                if self._plugins:
                    request = pb.RemoveContainerRequest(
                        pod=to_proto.pod(pod), container=to_proto.container(container)
                    )
                    await self._notify(request)

    # -- sending ----------------------------------------------------------------------------------------------

    async def _send(self, request: Message) -> None:
        """Send a request that plugins may fail: the first error is raised, and later plugins do not get it."""
        for plugin in self._plugins:
            await plugin.send(request)

    async def _notify(self, request: Message) -> None:
        """Send a notification to every plugin; errors are logged."""
        for plugin in self._plugins:
            await attempt(partial(plugin.send, request), WORK, request.DESCRIPTOR.name)

    async def _notify_of(self, request: type[Any], pod: PodEntry, container: ContainerEntry) -> None:
        async with self._event_lock:
            if self._plugins:
                await self._notify(request(pod=to_proto.pod(pod), container=to_proto.container(container)))

    # -- updates ----------------------------------------------------------------------------------------------

    async def _apply_updates(self, updates: Updates) -> None:
        """Apply the updates in plugins' responses; failures are logged."""
        for update in updates.merged.values():
            await self._apply_update(update)

    async def _apply_update(self, update: pb.ContainerUpdate) -> bool:
        """Update a container's limits; whether it succeeded. All events wait for it, hence the timeout."""
        assert self._pods is not None
        try:
            limits = from_proto.resources(update.linux.resources)
            async with asyncio.timeout(UPDATE_TIMEOUT):
                await self._pods.container_updater.set_limits(update.container_id, limits)
        except TimeoutError:
            log.warning("NRI: container %s: its update took more than %g s", update.container_id, UPDATE_TIMEOUT)
            return False
        except Exception as error:
            report(error, "update for NRI", f"NRI: container {update.container_id} cannot be updated")
            return False
        return True

    async def _update(self, request: pb.UpdateContainersRequest) -> list[pb.ContainerUpdate]:
        """Serve UpdateContainers; returns the updates that failed and do not ignore failure."""
        self._evict(request.evict)
        outcomes = [(update, await self._apply_update(update)) for update in request.update]
        return [update for update, succeeded in outcomes if not succeeded and not update.ignore_failure]

    def _evict(self, evictions: Iterable[pb.ContainerEviction]) -> None:
        """Stop containers in the background: their StopContainer event needs the lock that the caller has."""
        for eviction in evictions:
            reason = eviction.reason or "no reason given"
            log.warning("NRI: container %s is evicted: %s", eviction.container_id, reason)
            assert self._pods is not None
            end = partial(self._pods.container_stopper.stop, eviction.container_id, 0)
            self._supervisor.once("eviction for NRI", end, eviction.container_id)


def _validates(plugin: Plugin) -> bool:
    return not plugin.closed and plugin.subscribed(pb.ValidateContainerAdjustmentRequest)


async def _validate(
    validators: Iterable[Plugin], request: pb.ValidateContainerAdjustmentRequest, creation: Creation
) -> None:
    """Send the merged adjustment to the validating plugins, concurrently; PluginError if one rejects it."""
    request.adjust.CopyFrom(creation.adjustment)
    request.update.extend(creation.updates.merged.values())
    request.owners.CopyFrom(creation.owners.message())
    await asyncio.gather(*(plugin.validate(request) for plugin in validators))
