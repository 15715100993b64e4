# SPDX-License-Identifier: Apache-2.0
"""What pods and containers use, read when a client asks.

A pod's figures are those of its CT's cgroup: the containers and what the pod itself costs, as Proxmox counts and
shows them. Nothing is measured beforehand but the CPU time, every ten seconds: so that the first client that asks
can be told a rate.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
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
    """What a cgroup uses at `time` (nanoseconds since the epoch). None is what the machine does not tell.

    `cpu_time` is nanoseconds since the start, `cpu_rate` nanoseconds of CPU per second; `swap_available` is what
    the group may still swap, at most what the machine has.
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
        """Bytes below the limit; None when there is no limit."""
        limit = self.memory.limit
        return None if limit is None else max(0, limit - self.memory.working_set)


@dataclass(frozen=True, slots=True)
class ContainerUsage:
    """A container, what it uses when it runs, and what it has written (None when that could not be counted)."""

    container: Container
    usage: Usage | None
    layer: FilesystemUsage | None


@dataclass(frozen=True, slots=True)
class Network:
    """The interfaces of a pod at `time`; `default` is the one that its address is on."""

    time: int
    default: Interface
    others: tuple[Interface, ...]

    @property
    def interfaces(self) -> tuple[Interface, ...]:
        """All of them, the default one first."""
        return (self.default, *self.others)


@dataclass(frozen=True, slots=True)
class PodUsage:
    """A pod, what it uses when it runs, and its running containers. A pod on the node's network has no `network`.

    `tasks` counts processes and threads, as the pod's limit does.
    """

    sandbox: Sandbox
    usage: Usage | None = None
    network: Network | None = None
    tasks: int | None = None
    containers: tuple[ContainerUsage, ...] = ()


class Statistics:
    """Answers for any number of pods or containers with one trip to a thread."""

    def __init__(self, registry: Registry, cgroups: Cgroups, layers: WritableLayers) -> None:
        self._registry = registry
        self._accounting = Accounting(cgroups)
        self._layers = layers
        self._rates = Rates()

    # -- what is asked ----------------------------------------------------------------------------------------

    async def container(self, container_id: str) -> ContainerUsage:
        """One container, whether it runs or not; NotFound."""
        return (await self._of_containers([self._registry.container(container_id)]))[0]

    async def containers(self, wanted: Callable[[Container], bool]) -> list[ContainerUsage]:
        """The running containers that are wanted, oldest first."""
        return await self._of_containers([each for each in self._running() if wanted(each.value)])

    async def pod(self, sandbox_id: str) -> PodUsage:
        """One pod, whether it runs or not; NotFound."""
        pod = self._registry.pod(sandbox_id)
        return (await self._of_pods([pod]))[0] if is_ready(pod) else PodUsage(pod.value)

    async def pods(self, wanted: Callable[[Sandbox], bool]) -> list[PodUsage]:
        """The ready pods that are wanted, oldest first."""
        return await self._of_pods([pod for pod in self._ready() if wanted(pod.value)])

    # -- how it is found out ----------------------------------------------------------------------------------

    async def _of_containers(self, containers: Sequence[ContainerEntry]) -> list[ContainerUsage]:
        groups = {each.id: self._registry.pod_of(each).group(each.id) for each in containers if is_running(each)}
        usages = await self._usages(groups)
        layers = await asyncio.gather(*(self._layers.usage(each.id) for each in containers))
        return [
            ContainerUsage(each.value, usages.get(each.id), layer)
            for each, layer in zip(containers, layers, strict=True)
        ]

    async def _of_pods(self, pods: Sequence[PodEntry]) -> list[PodUsage]:
        inside = [each for each in self._running() if each.value.sandbox_id in {pod.id for pod in pods}]
        containers = await self._of_containers(inside)
        usages = await self._usages({pod.id: pod.cgroup for pod in pods})
        networks, tasks = await asyncio.to_thread(self._read_pods, pods)
        return [
            PodUsage(
                sandbox=pod.value,
                usage=usages.get(pod.id),
                network=networks.get(pod.id),
                tasks=tasks[pod.id],
                containers=tuple(each for each in containers if each.container.sandbox_id == pod.id),
            )
            for pod in pods
        ]

    async def _usages(self, groups: Mapping[K, str]) -> dict[K, Usage]:
        """The use of each group that is there, with its rate."""
        if not groups:
            return {}
        found = await asyncio.to_thread(self._read_groups, groups)
        return {
            key: replace(usage, cpu_rate=self._rates.observe(key, usage.time, usage.cpu_time))
            for key, usage in found.items()
        }

    def _read_groups(self, groups: Mapping[K, str]) -> dict[K, Usage]:
        swap_total = accounting.swap_total()
        found = {}
        for key, group in groups.items():
            memory, cpu_time = self._accounting.memory(group), self._accounting.cpu_time(group)
            if memory is not None and cpu_time is not None:
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
        return networks, {pod.id: self._accounting.tasks(pod.cgroup) for pod in pods}

    def _running(self) -> list[ContainerEntry]:
        found = [each for each in self._registry.containers() if is_running(each)]
        return sorted(found, key=lambda each: each.value.created_at)

    def _ready(self) -> list[PodEntry]:
        return sorted(
            (pod for pod in self._registry.pods() if is_ready(pod)), key=lambda pod: pod.value.created_at
        )

    # -- sampling ---------------------------------------------------------------------------------------------

    async def sample(self) -> None:
        """Take one sample of everyone's CPU time, and forget what is gone; every INTERVAL seconds."""
        groups: dict[str, str] = {pod.id: pod.cgroup for pod in self._ready()}
        groups |= {each.id: self._registry.pod_of(each).group(each.id) for each in self._running()}
        self._rates.keep(groups.keys())
        self._layers.keep({each.id for each in self._registry.containers()})
        if groups:
            for key, (when, cpu_time) in (await asyncio.to_thread(self._cpu_times, groups)).items():
                self._rates.observe(key, when, cpu_time)

    def _cpu_times(self, groups: Mapping[str, str]) -> dict[str, tuple[int, int]]:
        times = ((key, time.time_ns(), self._accounting.cpu_time(group)) for key, group in groups.items())
        return {key: (when, cpu_time) for key, when, cpu_time in times if cpu_time is not None}


def is_running(container: ContainerEntry) -> bool:
    """Whether a container has a cgroup with something in it."""
    return container.value.state is ContainerState.RUNNING


def is_ready(pod: PodEntry) -> bool:
    """Whether a pod has a CT that runs."""
    return pod.value.phase is SandboxPhase.READY


def swap_available(memory: Memory, total: int) -> int | None:
    """What may still be swapped on a machine with `total` bytes of swap; None when it is not counted."""
    if memory.swap is None:
        return None
    limit = total if memory.swap_limit is None else min(memory.swap_limit, total)
    return max(0, limit - memory.swap)


def read_networks(pods: Sequence[PodEntry]) -> dict[SandboxId, Network]:
    """The interfaces of those pods that have any of their own. Blocks."""
    own = [pod for pod in pods if pod.value.config.security.namespaces.network is not NamespaceMode.NODE]
    if not own:
        return {}
    found = interfaces.read([pod.namespace("net") for pod in own])
    now = time.time_ns()
    return {pod.id: network(now, each) for pod, each in zip(own, found, strict=True) if each}


def network(when: int, found: Sequence[Interface]) -> Network:
    """The default interface, which the kubelet counts on, and the others."""
    default = next((each for each in found if each.name == INTERFACE), found[0])
    return Network(when, default, tuple(each for each in found if each is not default))
