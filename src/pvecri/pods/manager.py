# SPDX-License-Identifier: Apache-2.0
"""The Pod Manager: puts its parts together, and answers for pods and containers."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress

from pvecri import metrics
from pvecri.config import Config
from pvecri.errors import PvecriError
from pvecri.images.manager import ImageManager
from pvecri.linux import mounts
from pvecri.model import Container, ContainerState, Sandbox, SandboxPhase
from pvecri.network.manager import NetworkManager
from pvecri.oci.abilities import Abilities
from pvecri.oci.runtime import OciRuntime
from pvecri.pods.container.checkpoint import Checkpoints
from pvecri.pods.container.create import Creator
from pvecri.pods.container.exec import Commands
from pvecri.pods.container.lifecycle import Containers
from pvecri.pods.container.pause import Pauses
from pvecri.pods.container.volume_owners import VolumeProbe
from pvecri.pods.health import Condition, ProxmoxHealth, conditions, image_store_condition
from pvecri.pods.hooks import Hooks
from pvecri.pods.recovery import Recovery
from pvecri.pods.registry import LivePod, Pods
from pvecri.pods.sandbox.ct import Cts
from pvecri.pods.sandbox.ct_tags import CtTags
from pvecri.pods.sandbox.run import Sandboxes
from pvecri.pods.store import Store
from pvecri.pods.streams import Streams
from pvecri.pods.usage.cadvisor import Metrics
from pvecri.pods.usage.stats import Statistics
from pvecri.pods.usage.writable_layers import WritableLayers
from pvecri.pods.user_namespaces import Policy
from pvecri.proxmox.api import ProxmoxApi


class PodManager:
    """Use between `start` and `close`; its parts, such as `sandboxes` and `containers`, do what is asked."""

    def __init__(
        self,
        config: Config,
        abilities: Abilities,
        proxmox: ProxmoxApi,
        images: ImageManager,
        network: NetworkManager,
        hooks: Hooks,
    ) -> None:
        runtime = config.runtime
        for directory in (runtime.state_dir, runtime.run_dir):
            directory.mkdir(mode=0o711, parents=True, exist_ok=True)
            directory.chmod(0o711)  # root of a pod's user namespace passes through
        exits, oci = runtime.run_dir / "exits", runtime.run_dir / "oci"
        for directory in (exits, oci, runtime.run_dir / "pods", runtime.run_dir / "containers"):
            directory.mkdir(mode=0o711, exist_ok=True)
        # Mounts made here must show, and go away again, in the mount namespaces of running conmons.
        mounts.ensure_shared(runtime.run_dir)
        self._abilities = abilities
        self._config = config
        self._images = images
        self._network = network
        self._store = Store(runtime.state_dir / "pods.db")
        self._pods = Pods(self._store, runtime.run_dir)
        self._cts = Cts(config, proxmox, self._pods, abilities.cgroups, self._store.installation_id())
        oci_runtime = OciRuntime(abilities, oci, exits)
        self._volumes = VolumeProbe()
        self._tags = CtTags(self._pods, proxmox, config.proxmox.tags)
        # Not in the run directory: systemd mounts /run with noexec.
        pauses = Pauses(abilities, oci_runtime, runtime.state_dir / "pause")
        pauses.prepare()
        self.containers = Containers(config, abilities, self._pods, images, oci_runtime, exits, hooks)
        self.commands = Commands(abilities, self._pods, oci_runtime, hooks)
        self.checkpoints = Checkpoints(self._pods, oci_runtime, images)
        self.sandboxes = Sandboxes(
            self._pods,
            self._cts,
            network,
            self.containers,
            pauses,
            Policy(config.user_namespaces, config.proxmox.unprivileged),
            self._volumes,
            self._tags,
            hooks,
            runtime.default_sysctls,
        )
        self.creator = Creator(config, abilities, self._pods, images, pauses, self.sandboxes.move, hooks)
        self.streams = Streams(self._pods, oci_runtime, self.commands, self.sandboxes)
        self.events = self._pods.events
        self._layers = WritableLayers(images.rootfs_usage)
        self.statistics = Statistics(self._pods, abilities.cgroups, self._layers)
        self.metrics = Metrics(self._pods, abilities.cgroups, self._layers)
        self.health = ProxmoxHealth(config.proxmox, proxmox)
        self._recovery = Recovery(self._pods, self.sandboxes, self.containers, self._cts, proxmox, network, images)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Adopt what runs and begin to watch. Proxmox need not be reachable."""
        await self._recovery.adopt()
        self._tasks = [
            asyncio.create_task(self.health.run(), name="Proxmox health"),
            asyncio.create_task(self._recovery.run(), name="recovery"),
            asyncio.create_task(self.statistics.run(), name="statistics"),
            asyncio.create_task(self._tags.run(), name="tags of CTs"),
        ]

    async def close(self) -> None:
        """Stop watching; pods and containers go on."""
        watchers = [pod.watcher for pod in self._pods.pods()]
        watchers += [container.watcher for container in self._pods.containers()]
        for task in (*self._tasks, *watchers):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        await self._layers.close()
        self._volumes.close()
        self._store.close()

    async def conditions(self) -> list[Condition]:
        """What Status says of the runtime, the network, and each part of the runtime."""
        parts = (self.health.condition, image_store_condition(self._config))
        return conditions(*parts, network=await self._network.status())

    async def observe(self) -> None:
        """Tell the metrics how many pods and containers there are, and whether all is ready."""
        for condition in await self.conditions():
            metrics.CONDITION.labels(condition.type).set(condition.met)
        phases = Counter(pod.value.phase for pod in self._pods.pods())
        for phase in SandboxPhase:
            metrics.PODS.labels(phase.value).set(phases[phase])
        decisions = Counter(
            (pod.value.user_namespace.kind.value, pod.value.user_namespace.reason.value)
            for pod in self._pods.pods()
        )
        metrics.PODS_BY_USER_NAMESPACE.clear()
        for (kind, reason), count in decisions.items():
            metrics.PODS_BY_USER_NAMESPACE.labels(kind, reason).set(count)
        states = Counter(container.value.state for container in self._pods.containers() if container.made)
        for state in ContainerState:
            metrics.CONTAINERS.labels(state.value).set(states[state])

    @property
    def live(self) -> list[LivePod]:
        """Every pod with its containers, in whatever phase."""
        return self._pods.pods()

    @property
    def recursive_readonly_mounts(self) -> bool:
        """Whether containers can have them (CRI RuntimeHandlerFeatures)."""
        return self._abilities.oci_runtime.recursive_readonly

    # -- what clients see -------------------------------------------------------------------------------------

    def list_sandboxes(self) -> list[Sandbox]:
        """The sandboxes, oldest first; not those that are being made."""
        shown = [pod.value for pod in self._pods.pods() if pod.value.phase is not SandboxPhase.CREATING]
        return sorted(shown, key=lambda sandbox: sandbox.created_at)

    def sandbox(self, sandbox_id: str) -> Sandbox:
        """One sandbox; NotFound."""
        return self._pods.pod(sandbox_id).value

    async def ct_config(self, sandbox_id: str) -> dict[str, str]:
        """The config of a sandbox's CT, asked of Proxmox; its one entry `error` says why there is none."""
        pod = self._pods.pod(sandbox_id)
        try:
            return await self._cts.config(pod)
        except PvecriError as error:
            return {"error": str(error)}

    def oci_spec(self, container_id: str) -> bytes:
        """A container's OCI spec as JSON; empty when it is gone."""
        path = self._pods.container(container_id).bundle.spec
        return path.read_bytes() if path.exists() else b"{}"

    def list_containers(self) -> list[Container]:
        """The containers, oldest first; not those that are being made."""
        shown = [container.value for container in self._pods.containers() if container.made]
        return sorted(shown, key=lambda container: container.created_at)

    def container(self, container_id: str) -> Container:
        """One container; NotFound."""
        return self._pods.container(container_id).value

    def sandbox_of(self, container: Container) -> Sandbox:
        """The sandbox that a container is in."""
        return self.sandbox(container.sandbox_id)
