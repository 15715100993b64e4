# SPDX-License-Identifier: Apache-2.0
"""The Pod Manager: composes its parts, and answers the CRI's queries about pods and containers."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from pathlib import Path

from pvecri.config.settings import Config, ConfigError, RuntimeConfig
from pvecri.errors import PvecriError
from pvecri.images.manager import ImageManager
from pvecri.linux import mounts, single_instance
from pvecri.model import Container, ContainerState, Sandbox, SandboxPhase
from pvecri.network.manager import NetworkManager
from pvecri.observability import metrics
from pvecri.oci.features import HostFeatures
from pvecri.oci.runtime import OciRuntime
from pvecri.pods.container.checkpoint import Checkpoints
from pvecri.pods.container.create import ContainerCreator
from pvecri.pods.container.exec import ContainerExec
from pvecri.pods.container.exit import ContainerExits
from pvecri.pods.container.pause import Pauses
from pvecri.pods.container.remove import ContainerRemover
from pvecri.pods.container.start import ContainerStarter
from pvecri.pods.container.stop import ContainerStopper
from pvecri.pods.container.update import ContainerUpdater
from pvecri.pods.container.volume_owners import VolumeProbe
from pvecri.pods.foreign_cts import ForeignCts
from pvecri.pods.front.container import FrontContainers
from pvecri.pods.front.sandbox import SWEEP_INTERVAL, FrontSandboxes
from pvecri.pods.health import Condition, ProxmoxHealth, background_condition, conditions, image_store_condition
from pvecri.pods.hooks import Hooks
from pvecri.pods.monitor_mounts import MonitorMounts
from pvecri.pods.node_downtime import INTERVAL as DOWNTIME_INTERVAL
from pvecri.pods.node_downtime import NodeDowntime
from pvecri.pods.recovery import Recovery
from pvecri.pods.registry import Registry
from pvecri.pods.sandbox.ct import SandboxCts
from pvecri.pods.sandbox.ct_removals import CtRemovals
from pvecri.pods.sandbox.ct_upkeep import CtUpkeep
from pvecri.pods.sandbox.run import SandboxRunner
from pvecri.pods.sandbox.stop import SandboxTeardown
from pvecri.pods.sandbox.update import SandboxUpdater
from pvecri.pods.store import Store, claim_name
from pvecri.pods.streams import Streams
from pvecri.pods.usage.cadvisor import Metrics
from pvecri.pods.usage.stats import INTERVAL as SAMPLE_INTERVAL
from pvecri.pods.usage.stats import Statistics
from pvecri.pods.usage.writable_layers import WritableLayers
from pvecri.pods.user_namespaces import Policy
from pvecri.pods.warm.demand import CtKind
from pvecri.pods.warm.pool import WarmPool
from pvecri.proxmox.api import ProxmoxApi
from pvecri.supervision import Failing, Supervisor


class PodManager:
    """Use between `start` and `close`. The public attributes carry out the CRI calls that change something."""

    def __init__(
        self,
        config: Config,
        features: HostFeatures,
        proxmox: ProxmoxApi,
        images: ImageManager,
        network: NetworkManager,
        hooks: Hooks,
    ) -> None:
        runtime, cgroups = config.runtime, features.cgroups
        exit_dir, oci_dir = _make_directories(runtime)
        self._supervisor = supervisor = Supervisor()
        self._config, self._features = config, features
        self._images = images
        self._network = network
        self._store = Store(runtime.state_dir / "pods.db")
        self.registry = registry = Registry(self._store, runtime.run_dir)
        self._installation = installation = self._store.installation_id()
        self._claim: single_instance.Claim | None = None
        self._cts = cts = SandboxCts(config, proxmox, registry, cgroups, installation)
        self.foreign_cts = ForeignCts(proxmox, registry, config.proxmox.node_name, installation, cts.listed)
        oci_runtime = OciRuntime(features, oci_dir, exit_dir, runtime.state_dir, runtime.create_timeout)
        self._volumes = VolumeProbe()
        self.health = health = ProxmoxHealth(config.proxmox, proxmox)
        self._upkeep = upkeep = CtUpkeep(config, registry, proxmox, cts, lambda: health.condition.met)
        # Not in the run directory: systemd mounts /run with noexec.
        pauses = Pauses(features, oci_runtime, runtime.state_dir / "pause")
        pauses.prepare()
        self._downtime = downtime = NodeDowntime(runtime.state_dir / "last-run")
        exits = ContainerExits(registry, images, oci_runtime, cgroups, exit_dir, hooks, supervisor, downtime)
        monitor_mounts = MonitorMounts((*_with_mounts(runtime), images.mounts_root), supervisor)
        cts.drop_mounts = monitor_mounts.drop
        starter = ContainerStarter(config, features, registry, oci_runtime, exits, hooks, monitor_mounts)
        self.container_starter = starter
        self.container_stopper = stopper = ContainerStopper(registry, cgroups)
        self.container_remover = remover = ContainerRemover(registry, images, stopper, exits, hooks)
        self.container_updater = ContainerUpdater(features, registry, oci_runtime, hooks)
        self.container_exec = ContainerExec(registry, oci_runtime)
        self.checkpoints = Checkpoints(registry, oci_runtime, images, cgroups)
        self.removals = removals = CtRemovals(registry, cts, supervisor)
        teardown = SandboxTeardown(registry, cts, removals, network, stopper, remover, pauses, hooks, supervisor)
        self.sandbox_teardown = teardown
        self._warm = warm = WarmPool(config.proxmox, registry, cts, proxmox, teardown, supervisor)
        policy = Policy(config.user_namespaces, config.proxmox.unprivileged)
        services = network, pauses, policy, self._volumes, upkeep.tags, hooks
        self.sandbox_runner = SandboxRunner(registry, cts, *services, teardown, warm, runtime.default_sysctls)
        self.sandbox_updater = SandboxUpdater(registry, cts, hooks)
        self.container_creator = ContainerCreator(config, features, registry, images, pauses, teardown, hooks)
        self.streams = Streams(registry, oci_runtime)
        self.events = registry.events
        self._layers = WritableLayers(images.rootfs_usage, supervisor)
        self.statistics = Statistics(registry, cgroups, self._layers)
        self.metrics = Metrics(registry, cgroups, self._layers)
        self._front_sandboxes = fronts = FrontSandboxes(
            registry, cts, removals, upkeep.tags, teardown, warm, cgroups
        )
        self.front_containers = FrontContainers(registry, fronts, oci_runtime, exits, stopper, cgroups)
        adopt_of_front = self.front_containers.adopt
        self._recovery = Recovery(registry, teardown, exits, cts, network, images, adopt_of_front, warm.adopt)

    async def start(self) -> None:
        """Adopt running pods; `attend` follows once the CRI is served. Proxmox need not be reachable.

        ConfigError if another daemon with this installation's id runs on this machine.
        """
        self._claim = await single_instance.claim(claim_name(self._installation))
        if self._claim is None:  # each would take the other's pods for its own
            directory = self._config.runtime.state_dir
            raise ConfigError(f"runtime.state_dir: {directory} is a copy of that of another pvecri, which runs")
        self.registry.node_shutdown.forget()
        # Before the CRI is served: no client may see states of the last daemon process as current.
        await self._recovery.adopt()
        self.removals.start()

    def attend(self) -> None:
        """Start the background work. Once the CRI is served: the first answer would wait for its CPU time."""
        self._supervisor.until_done("adoption", self._recovery.attend)
        self._network.await_earlier_plugins()
        repeat = self._supervisor.repeat
        repeat("Proxmox health", self.health.poll, self.health.pause)
        repeat("pod store", self.registry.write_unsaved, self.registry.unsaved.wait)
        repeat("recovery", self._recovery.clean_up, self.sandbox_teardown.removal_pending.wait)
        repeat("foreign CTs", self.foreign_cts.search, self.foreign_cts.pause)
        repeat("statistics", self.statistics.sample, partial(asyncio.sleep, SAMPLE_INTERVAL))
        repeat("time of the last run", self._downtime.refresh, partial(asyncio.sleep, DOWNTIME_INTERVAL))
        self._upkeep.start(self._supervisor)
        for kind in self._warm.kinds:
            repeat(f"warm CTs ({kind.value})", partial(self._warm.keep, kind), partial(self._warm.wait, kind))
        repeat("end of fronts' pods", self._front_sandboxes.sweep, partial(asyncio.sleep, SWEEP_INTERVAL))

    async def close(self) -> None:
        """Stop the background tasks; pods and containers keep running."""
        # First: its tasks write to the store.
        await self._supervisor.close()
        await self._downtime.refresh()
        self.registry.close()
        self._volumes.close()
        self._store.close()
        if self._claim is not None:
            self._claim.close()

    async def conditions(self) -> list[Condition]:
        """The conditions of CRI Status: RuntimeReady, NetworkReady and those of the runtime's parts."""
        parts = (self.health.condition, image_store_condition(self._config))
        background = background_condition(self._supervisor.failing)
        return conditions(*parts, network=await self._network.status(), background=background)

    @property
    def failing(self) -> list[Failing]:
        """Background work that keeps failing."""
        return self._supervisor.failing

    async def observe(self) -> None:
        """Set the gauges of conditions, pods and containers; called before each scrape."""
        for condition in await self.conditions():
            metrics.CONDITION.labels(condition.type).set(condition.met)
        phases = Counter(pod.value.phase for pod in self.registry.pods())
        for phase in SandboxPhase:
            metrics.PODS.labels(phase.value).set(phases[phase])
        metrics.CT_REMOVALS.set(len(self.removals.pending()))
        for ct_kind in CtKind:
            metrics.WARM_CTS.labels(ct_kind.value).set(self._warm.waiting(ct_kind))
            metrics.WARM_TARGET.labels(ct_kind.value).set(self._warm.target(ct_kind))
        if (free := self._cts.vmids_free) is not None:
            metrics.VMIDS.labels("free").set(free)
            metrics.VMIDS.labels("used").set(self._cts.vmid_range.size - free)
        metrics.BACKGROUND_FAILING.clear()
        for work, count in Counter(each.work for each in self._supervisor.failing).items():
            metrics.BACKGROUND_FAILING.labels(work).set(count)
        decisions = Counter(
            (pod.value.user_namespace.kind.value, pod.value.user_namespace.reason.value)
            for pod in self.registry.pods()
        )
        metrics.PODS_BY_USER_NAMESPACE.clear()  # label values without pods would keep their last number
        for (kind, reason), count in decisions.items():
            metrics.PODS_BY_USER_NAMESPACE.labels(kind, reason).set(count)
        states = Counter(container.value.state for container in self.registry.containers() if container.created)
        for state in ContainerState:
            metrics.CONTAINERS.labels(state.value).set(states[state])

    @property
    def recursive_readonly_mounts(self) -> bool:
        """CRI RuntimeHandlerFeatures.recursive_read_only_mounts."""
        return self._features.oci_runtime.recursive_readonly

    # -- queries ----------------------------------------------------------------------------------------------

    def list_sandboxes(self) -> list[Sandbox]:
        """The sandboxes, oldest first, except those that are being created."""
        shown = [pod.value for pod in self.registry.pods() if pod.value.phase is not SandboxPhase.CREATING]
        return sorted(shown, key=lambda sandbox: sandbox.created_at)

    async def ct_config(self, sandbox_id: str) -> dict[str, str]:
        """The config of a sandbox's CT, read from Proxmox; if that fails, the one entry `error` says why."""
        pod = self.registry.pod(sandbox_id)
        try:
            return await self._cts.config(pod)
        except PvecriError as error:
            return {"error": str(error)}

    def oci_spec(self, container_id: str) -> bytes:
        """A container's OCI spec as JSON; `{}` if it does not exist any more."""
        path = self.registry.container(container_id).bundle.spec
        return path.read_bytes() if path.exists() else b"{}"

    def list_containers(self) -> list[Container]:
        """The containers, oldest first, except those that are being created."""
        shown = [each.value for each in self.registry.containers() if each.created and not each.hidden]
        return sorted(shown, key=lambda container: container.created_at)


def _make_directories(runtime: RuntimeConfig) -> tuple[Path, Path]:
    """Make the state and run directories; returns those of conmon's exit files and of the OCI runtime's state."""
    for directory in (runtime.state_dir, runtime.run_dir):
        directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        directory.chmod(0o711)  # root of a pod's user namespace passes through
    exit_dir, oci_dir = runtime.run_dir / "exits", runtime.run_dir / "oci"
    for directory in (exit_dir, oci_dir, *_with_mounts(runtime)):
        directory.mkdir(mode=0o711, exist_ok=True)
    # What is unmounted here must disappear from other mount namespaces, too.
    mounts.ensure_shared(runtime.run_dir)
    for directory in _with_mounts(runtime):
        # Not over mounts of an earlier version's pods, which would stay below.
        if not any(directory.iterdir()):
            mounts.ensure_shared(directory)
    return exit_dir, oci_dir


def _with_mounts(runtime: RuntimeConfig) -> tuple[Path, ...]:
    """The directories of the run directory below which pods and containers have mounts (monitor_mounts.py)."""
    return runtime.run_dir / "pods", runtime.run_dir / "containers"
