# SPDX-License-Identifier: Apache-2.0
"""Resource usage of pods and containers (CRI stats calls), read from the kernel on each request.

A pod's usage is that of its CT's cgroup: its containers and conmon, as Proxmox shows it. Only CPU time is sampled
in the background, so that the first request already gets a rate (decision 0057).
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from pvecri.linux import accounting, interfaces
from pvecri.linux.accounting import Accounting, Memory, Pressure
from pvecri.linux.cgroups import Cgroups
from pvecri.linux.interfaces import Interface
from pvecri.model import (
    Container,
    ContainerState,
    FilesystemUsage,
    NamespaceMode,
    Sandbox,
    SandboxId,
    SandboxPhase,
    UserNamespaceKind,
)
from pvecri.network.attachment import INTERFACE
from pvecri.pods.registry import ContainerEntry, PodEntry, Registry
from pvecri.pods.usage.cpu_rate import Rates
from pvecri.pods.usage.writable_layers import WritableLayers

INTERVAL = 10.0
"""Seconds between two samples of CPU time."""

K = TypeVar("K", bound=str)


@dataclass(frozen=True, slots=True)
class Usage:
    """The usage of a cgroup at `time` (nanoseconds since the epoch). None if the kernel does not account for it.

    `cpu_time` is nanoseconds since the start, `cpu_rate` nanoseconds of CPU per second; `swap_available` is bytes
    below the cgroup's swap limit and below the node's total.
    """

    time: int
    cpu_time: int
    cpu_rate: int | None
    memory: Memory
    swap_available: int | None
    cpu_pressure: Pressure | None
    memory_pressure: Pressure | None
    io_pressure: Pressure | None

    @property
    def memory_available(self) -> int | None:
        """Bytes below the limit; None without a limit."""
        limit = self.memory.limit
        return None if limit is None else max(0, limit - self.memory.working_set)


@dataclass(frozen=True, slots=True)
class ContainerUsage:
    """A container, its usage if it runs, and its writable layer's size (None if counting failed)."""

    container: Container
    usage: Usage | None
    layer: FilesystemUsage | None


@dataclass(frozen=True, slots=True)
class Network:
    """The interfaces of a pod at `time`; `default` is the one with the pod's address."""

    time: int
    default: Interface
    others: tuple[Interface, ...]

    @property
    def interfaces(self) -> tuple[Interface, ...]:
        """All interfaces, the default one first."""
        return (self.default, *self.others)


@dataclass(frozen=True, slots=True)
class PodUsage:
    """A pod, its usage if it is READY, and its running containers. `network` is None in the node's network.

    `tasks` counts processes and threads, as the cgroup's pids.max does.
    """

    sandbox: Sandbox
    usage: Usage | None = None
    network: Network | None = None
    tasks: int | None = None
    containers: tuple[ContainerUsage, ...] = ()


class Statistics:
    """Reads any number of cgroups in one worker thread call."""

    def __init__(self, registry: Registry, cgroups: Cgroups, layers: WritableLayers) -> None:
        self._registry = registry
        self._accounting = Accounting(cgroups)
        self._layers = layers
        self._rates = Rates()

    async def container(self, container_id: str) -> ContainerUsage:
        """One container, whether it runs or not; NotFound."""
        return (await self._of_containers([self._registry.container(container_id)]))[0]

    async def containers(self, wanted: Callable[[Container], bool]) -> list[ContainerUsage]:
        """The running containers that `wanted` selects, oldest first."""
        return await self._of_containers([each for each in self._running() if wanted(each.value)])

    async def pod(self, sandbox_id: str) -> PodUsage:
        """One pod, whether it runs or not; NotFound."""
        pod = self._registry.pod(sandbox_id)
        return (await self._of_pods([pod]))[0] if is_ready(pod) else PodUsage(pod.value)

    async def pods(self, wanted: Callable[[Sandbox], bool]) -> list[PodUsage]:
        """The READY pods that `wanted` selects, oldest first."""
        return await self._of_pods([pod for pod in self._ready() if wanted(pod.value)])

    # -- reading ----------------------------------------------------------------------------------------------

    async def _of_containers(self, containers: Sequence[ContainerEntry]) -> list[ContainerUsage]:
        groups = {
            each.id: self._registry.pod_of(each).cgroups.container(each.id)
            for each in containers
            if is_running(each)
        }
        usages = await self._usages(groups)
        layers = await asyncio.gather(*(self._layer(each) for each in containers))
        return [
            ContainerUsage(each.value, usages.get(each.id), layer)
            for each, layer in zip(containers, layers, strict=True)
        ]

    async def _layer(self, container: ContainerEntry) -> FilesystemUsage | None:
        # The root filesystem of a front's container is the front's.
        return await self._layers.usage(container.id) if container.value.front is None else None

    async def _of_pods(self, pods: Sequence[PodEntry]) -> list[PodUsage]:
        inside = [each for pod in pods for each in pod.containers.values() if is_running(each)]
        by_pod = _by_pod(await self._of_containers(sorted(inside, key=_age)))
        usages = await self._usages({pod.id: pod.cgroups.ct for pod in pods})
        networks, tasks = await asyncio.to_thread(self._read_pods, pods)
        return [
            PodUsage(
                sandbox=pod.value,
                usage=usages.get(pod.id),
                network=networks.get(pod.id),
                tasks=tasks[pod.id],
                containers=tuple(by_pod[pod.id]),
            )
            for pod in pods
        ]

    async def _usages(self, groups: Mapping[K, str]) -> dict[K, Usage]:
        """The usage of each cgroup that exists, with its CPU rate."""
        if not groups:
            return {}
        found = await asyncio.to_thread(self._read_groups, groups)
        return {
            key: replace(usage, cpu_rate=self._rates.observe(key, usage.time, usage.cpu_time))
            for key, usage in found.items()
        }

    def _read_groups(self, groups: Mapping[K, str]) -> dict[K, Usage]:
        swap_total = accounting.swap_total()  # of the node, read once for all groups
        found = {}
        for key, group in groups.items():
            memory, cpu_time = self._accounting.memory(group), self._accounting.cpu_time(group)
            if memory is not None and cpu_time is not None:  # else it has exited meanwhile
                found[key] = Usage(
                    time=time.time_ns(),
                    cpu_time=cpu_time,
                    cpu_rate=None,
                    memory=memory,
                    swap_available=swap_available(memory, swap_total),
                    cpu_pressure=self._accounting.pressure(group, "cpu"),
                    memory_pressure=self._accounting.pressure(group, "memory"),
                    io_pressure=self._accounting.pressure(group, "io"),
                )
        return found

    def _read_pods(self, pods: Sequence[PodEntry]) -> tuple[dict[SandboxId, Network], dict[SandboxId, int | None]]:
        networks = read_networks(pods)
        return networks, {pod.id: self._accounting.tasks(pod.cgroups.ct) for pod in pods}

    def _running(self) -> list[ContainerEntry]:
        return sorted(filter(is_running, self._registry.containers()), key=_age)

    def _ready(self) -> list[PodEntry]:
        return sorted(filter(is_ready, self._registry.pods()), key=_age)

    # -- sampling ---------------------------------------------------------------------------------------------

    async def sample(self) -> None:
        """Sample the CPU time of all pods and containers, and drop the samples of removed ones."""
        groups: dict[str, str] = {pod.id: pod.cgroups.ct for pod in self._ready()}
        groups |= {each.id: self._registry.pod_of(each).cgroups.container(each.id) for each in self._running()}
        self._rates.keep(groups.keys())
        self._layers.keep({each.id for each in self._registry.containers()})
        if groups:
            for key, (when, cpu_time) in (await asyncio.to_thread(self._cpu_times, groups)).items():
                self._rates.observe(key, when, cpu_time)

    def _cpu_times(self, groups: Mapping[str, str]) -> dict[str, tuple[int, int]]:
        times = ((key, time.time_ns(), self._accounting.cpu_time(group)) for key, group in groups.items())
        return {key: (when, cpu_time) for key, when, cpu_time in times if cpu_time is not None}


def _age(entry: ContainerEntry | PodEntry) -> int:
    return entry.value.created_at


def _by_pod(usages: Iterable[ContainerUsage]) -> defaultdict[SandboxId, list[ContainerUsage]]:
    grouped: defaultdict[SandboxId, list[ContainerUsage]] = defaultdict(list)
    for each in usages:
        grouped[each.container.sandbox_id].append(each)
    return grouped


def is_running(container: ContainerEntry) -> bool:
    """Whether a container has a cgroup to read, and is one that lists show."""
    return container.value.state is ContainerState.RUNNING and not container.hidden


def is_ready(pod: PodEntry) -> bool:
    """Whether a pod's CT runs."""
    return pod.value.phase is SandboxPhase.READY


def swap_available(memory: Memory, total: int) -> int | None:
    """Bytes that may still be swapped, of `total` on the node; None if the kernel does not account for swap."""
    if memory.swap is None:
        return None
    limit = total if memory.swap_limit is None else min(memory.swap_limit, total)
    return max(0, limit - memory.swap)


def read_networks(pods: Sequence[PodEntry]) -> dict[SandboxId, Network]:
    """The interfaces of the pods that have a network namespace of their own. Blocks."""
    # A front's pods have its network namespace, not one that is pinned here.
    pods = [pod for pod in pods if pod.value.front is None]
    own = [pod for pod in pods if pod.value.config.security.namespaces.network is not NamespaceMode.NODE]
    now = time.time_ns()
    found = _interfaces(own)
    return {pod: network(now, each) for pod, each in found.items() if each}


def _interfaces(pods: Sequence[PodEntry]) -> dict[SandboxId, tuple[Interface, ...] | None]:
    found, pinned = {}, []
    for pod in pods:
        # The CT's init is in the pod's network namespace, unless the pod has namespaces of its pause container.
        if pod.init is None or pod.value.user_namespace.kind is UserNamespaceKind.POD:
            pinned.append(pod)
        else:
            found[pod.id] = interfaces.of_process(pod.init)
    if pinned:
        of_pinned = interfaces.read([pod.namespace("net") for pod in pinned])
        found.update(zip((pod.id for pod in pinned), of_pinned, strict=True))
    return found


def network(when: int, found: Sequence[Interface]) -> Network:
    """Splits off the default interface, the one that the kubelet reports for the pod."""
    default = next((each for each in found if each.name == INTERFACE), found[0])
    return Network(when, default, tuple(each for each in found if each is not default))
