# SPDX-License-Identifier: Apache-2.0
"""The Proxmox container (CT) of a pod: made, watched until its init runs, stopped and destroyed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Set
from contextlib import suppress
from pathlib import Path

from msgspec.structs import replace

from pvecri.backoff import Backoff
from pvecri.config import Config
from pvecri.errors import DeadlineExceeded, InternalError, PvecriError, ResourceExhausted
from pvecri.linux import accounting, processes
from pvecri.linux.cgroups import EVERY_DEVICE, Cgroups
from pvecri.linux.processes import Process
from pvecri.model import IdMapping, ProxmoxInterface, Resources, Vmid
from pvecri.pods.registry import PodEntry, Registry
from pvecri.pods.sandbox import ct_notes, kubelet_cgroups
from pvecri.pods.sandbox.kubelet_cgroups import KubeletCgroups
from pvecri.pods.sandbox.vmids import VmidAllocator
from pvecri.proxmox.api import ProxmoxApi
from pvecri.proxmox.ctspec import CtSpec, size_parameters
from pvecri.proxmox.errors import CtExists, CtHidden, CtNotFound, ProxmoxError
from pvecri.proxmox.sizing import CtSize, ct_size

log = logging.getLogger(__name__)

INIT_NAME = "catatonit"
"""What /proc/PID/comm says once the template's init has become itself."""

POLL_INIT = Backoff(first=0.002, maximum=0.1, factor=1.2)
"""Seconds between looks for a CT's init."""

INIT_OOM_SCORE_ADJ = -998
"""As other runtimes' pause containers have: if memory runs out, a container ends and not the whole pod."""

ASK_AFTER = 3.0
ASK_AGAIN = 2.0
"""Seconds after which a start is late, and Proxmox is asked whether its task has failed; then until it is
again.
"""


DESTROYED_WITHIN = 5.0
"""Seconds for the end of a destroy, after a CT has left its pool: its firewall, jobs and config are removed."""


class SandboxCts:
    """Makes and removes the CTs of this installation's pods; touches no other CT."""

    def __init__(
        self, config: Config, proxmox: ProxmoxApi, registry: Registry, cgroups: Cgroups, installation: str
    ) -> None:
        self._config = config
        self._proxmox = proxmox
        self._registry = registry
        self._cgroups = cgroups
        self._kubelet = KubeletCgroups(
            cgroups,
            config.proxmox.vmid_range,
            enforce_node_allocatable=config.runtime.enforce_node_allocatable,
        )
        self._installation = installation
        self._vmids = VmidAllocator(config.proxmox.vmid_range)
        self._template = ""
        self._arch = ""
        self._node_memory = 0
        self._preparing = asyncio.Lock()

    async def prepare(self) -> None:
        """Learn what the cluster has and put the sandbox template on its storage. Idempotent."""
        async with self._preparing:
            if not self.prepared:
                await self._prepare()

    async def _prepare(self) -> None:
        self._node_memory = (await self._proxmox.node_status()).memory.total
        await self._learn_vmids()
        self._template, template = await self._proxmox.ensure_sandbox_template()
        self._arch = template.arch

    @property
    def prepared(self) -> bool:
        """Whether `prepare` has succeeded."""
        return bool(self._template)

    async def create(self, pod: PodEntry, interface: ProxmoxInterface | None = None) -> None:
        """Make and start the pod's CT, and wait until its init runs; sets `pod.init` and the id mappings.

        A CT with a firewall is started only when that is set.

        The VMID is stored before Proxmox is asked for it. A number that another node took is passed over.
        """
        await self.prepare()
        refused: set[int] = set()
        while True:
            vmid = await self._take_vmid(refused)
            self._registry.save_pod(pod, replace(pod.value, vmid=vmid))
            try:
                upid = await self._proxmox.create_ct(self._spec(pod, interface))
                break
            except CtExists:
                log.info("VMID %d is taken by another guest, taking the next", pod.value.vmid)
                self._registry.save_pod(pod, replace(pod.value, vmid=0))
                refused.add(vmid)
            except ProxmoxError:
                self._template = ""  # somebody may have deleted it: the next pod looks again
                raise
        if interface is not None and interface.firewall is not None:
            await self._proxmox.protect_ct(pod.value.vmid, interface.firewall)
            await self._proxmox.start_ct(pod.value.vmid)
        init = await self._wait_for_init(pod, upid.start_time)
        pod.init = Process(init)
        self._registry.save_pod(pod, replace(pod.value, mappings=id_mappings(init), ct_made=True))
        processes.set_oom_score_adj(init, INIT_OOM_SCORE_ADJ)
        self._kubelet.mirror(pod)
        if pod.value.privileged:
            # The CT's device filter bounds those of the containers below it.
            self._cgroups.allow_devices(pod.cgroup, EVERY_DEVICE)

    async def resize(self, pod: PodEntry, resources: Resources, overhead: Resources) -> None:
        """Give the running CT the size that these ask for (PUT …/config); it takes effect at once. Idempotent."""
        await self.prepare()
        size = self._size(pod, resources, overhead)
        await self._proxmox.configure_ct(pod.value.vmid, **size_parameters(size))
        self._kubelet.mirror(pod)

    def pod_resources(self, pod: PodEntry) -> Resources:
        """What the pod as a whole may use, before any change that is under way."""
        config = pod.value.config
        return kubelet_cgroups.pod_resources(config.resources, self._kubelet.pod_limits(config))

    def mirror_limits(self, pod: PodEntry) -> None:
        """Write the kubelet's limits that Proxmox has no option for to the running CT's cgroup. Idempotent."""
        self._kubelet.mirror(pod)

    def _size(self, pod: PodEntry, resources: Resources, overhead: Resources) -> CtSize:
        """The size for a pod that may use `resources`; at most what the kubelet allows to all pods together."""
        config = pod.value.config
        allocatable = self._kubelet.node_allocatable(config).memory
        return ct_size(
            resources,
            overhead,
            node_memory=self._node_memory if allocatable is None else min(self._node_memory, allocatable),
            overhead_mib=self._config.proxmox.memory_overhead_mib,
            swap=self._kubelet.swap(config, accounting.swap_total()),
        )

    async def config(self, pod: PodEntry) -> dict[str, str]:
        """The CT's config as Proxmox has it, option by option; empty when there is no CT."""
        try:
            return (await self._proxmox.ct_config(pod.value.vmid)).raw if pod.value.vmid else {}
        except CtNotFound:
            return {}

    async def stop(self, pod: PodEntry) -> None:
        """Stop the pod's CT. Idempotent: stopped, gone and never made are all fine."""
        if pod.alive:
            await self._restore_notes(pod)
        if pod.value.vmid and (pod.alive or await self._owns(pod)):
            await self._proxmox.stop_ct(pod.value.vmid)
            # Containers of a pod with the node's pid namespace do not die with the CT's init.
            self._cgroups.kill(pod.cgroup)
        if pod.init is not None:
            pod.init.close()
            pod.init = None

    async def destroy(self, pod: PodEntry) -> None:
        """Destroy the pod's CT, after which the VMID is free. Idempotent.

        A CT with that number that is not this pod's, by its description, is left alone.
        """
        vmid = pod.value.vmid
        if not vmid:
            return
        if await self._owns(pod):
            await self._proxmox.destroy_ct(vmid)
        with suppress(OSError):  # what LXC did not make, it does not always remove
            self._cgroups.remove(pod.cgroup)
        self._registry.save_pod(pod, replace(pod.value, vmid=0, ct_made=False), ending=True)
        self._vmids.give_back(vmid)

    async def orphans(self) -> AsyncIterator[int]:
        """The VMIDs of CTs that this installation made and no longer knows: their rows were lost."""
        vmids = self._config.proxmox.vmid_range
        known = {pod.value.vmid for pod in self._registry.pods()}
        for guest in await self._proxmox.guests():
            if guest.type != "lxc" or guest.node != self._config.proxmox.node_name:
                continue
            # Not by their tags: a CT gets them only when its pod runs.
            if not vmids.first <= guest.vmid <= vmids.last or guest.vmid in known:
                continue
            try:
                config = await self._proxmox.ct_config(guest.vmid)
            except CtNotFound:
                continue
            owner = ct_notes.owner(config.description)
            if not owner.sandbox or owner.installation != self._installation:
                continue
            # Asked last, and not before the list of guests came: pods are being made meanwhile.
            if not any(pod.id == owner.sandbox for pod in self._registry.pods()):
                yield guest.vmid

    def find_init(self, pod: PodEntry) -> Process | None:
        """The first process of the pod's CT, if it runs on this machine."""
        for pid in self._cgroups.processes(f"{pod.cgroup}/ns"):
            if processes.innermost_pid(pid) == 1 and processes.command_name(pid) == INIT_NAME:
                return Process(pid)
        return None

    async def _take_vmid(self, refused: Set[int]) -> Vmid:
        """A number that is not known to be taken, and none of those that Proxmox has just refused."""
        try:
            return self._vmids.take()
        except ResourceExhausted:
            await self._learn_vmids(refused)  # guests come and go without telling us
            return self._vmids.take()

    async def _learn_vmids(self, refused: Set[int] = frozenset()) -> None:
        # An account with rights on a pool alone does not see the guests outside of it: those are `refused`.
        guests = {guest.vmid for guest in await self._proxmox.guests()}
        self._vmids.replace(guests | refused | {pod.value.vmid for pod in self._registry.pods()})

    async def _restore_notes(self, pod: PodEntry) -> None:
        """Write the notes of a running CT again if somebody changed whose they say it is.

        The CT is surely the pod's while the pod's init runs; once it is stopped, only its notes tell.
        """
        try:
            config = await self._proxmox.ct_config(pod.value.vmid)
            if ct_notes.owner(config.description).sandbox != pod.id:
                log.warning("the notes of CT %d of pod %s were changed: restored", pod.value.vmid, pod.value.name)
                await self._proxmox.configure_ct(pod.value.vmid, description=self._notes(pod))
        except PvecriError as error:  # what is done with the CT next fails for the same reason, and says so
            log.debug("restoring the notes of CT %d of pod %s: %s", pod.value.vmid, pod.value.name, error)

    def _notes(self, pod: PodEntry) -> str:
        return ct_notes.describe(pod.value.config, pod.id, self._installation, pod.value.user_namespace)

    async def _owns(self, pod: PodEntry) -> bool:
        """Whether the CT with the pod's VMID exists and is the pod's.

        A number that is reserved, by a call of ours that was cut off or by another's, says for whom when it is
        made: waits for that, and raises CtLocked or CtHidden when it takes longer than proxmox.task_timeout. A CT
        that is being destroyed exists until that has ended: CtLocked when it does not within `DESTROYED_WITHIN`.
        A CT of a pod that once ran and that our account does not see for as long is another's.
        """
        made = pod.value.ct_made
        try:
            config = await self._proxmox.idle_ct_config(pod.value.vmid, DESTROYED_WITHIN if made else None)
        except CtNotFound:
            return False
        except CtHidden:
            if not made:
                raise
            log.warning("CT %d is not in our pool, so not the one of pod %s", pod.value.vmid, pod.id)
            return False
        if ct_notes.owner(config.description).sandbox != pod.id:
            log.warning("CT %d is not the one of pod %s; it is left alone", pod.value.vmid, pod.id)
            return False
        return True

    async def _wait_for_init(self, pod: PodEntry, since: int) -> int:
        """The host's pid of the CT's init, once it is up.

        Looked for in the CT's cgroup, not asked of Proxmox: a start task has no name we know, and polling the API
        costs it more than the start. Only when the CT is late are its task's words looked for.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._config.runtime.start_timeout
        ask = loop.time() + ASK_AFTER
        for delay in POLL_INIT.delays():
            for pid in self._cgroups.processes(f"{pod.cgroup}/ns"):
                if processes.command_name(pid) == INIT_NAME and processes.innermost_pid(pid) == 1:
                    return pid
            now = loop.time()
            if now > deadline:
                raise DeadlineExceeded(
                    f"CT {pod.value.vmid} did not start within {self._config.runtime.start_timeout:g} s "
                    "(runtime.start_timeout)"
                )
            if now > ask:
                ask = now + ASK_AGAIN
                words = await self._proxmox.failed_start(pod.value.vmid, since)
                if words is not None:
                    raise InternalError(f"Proxmox: CT {pod.value.vmid} did not start: {words}")
            await asyncio.sleep(delay)
        raise AssertionError("delays never end")

    def _spec(self, pod: PodEntry, interface: ProxmoxInterface | None) -> CtSpec:
        settings = self._config.proxmox
        sandbox = pod.value.config
        return CtSpec(
            vmid=pod.value.vmid,
            hostname=sandbox.hostname or sandbox.metadata.name,
            template=self._template,
            storage=settings.storage,
            size=self._size(pod, self.pod_resources(pod), sandbox.overhead),
            arch=self._arch,
            rootfs_size_gib=settings.rootfs_size_gib,
            unprivileged=not pod.value.privileged,
            description=self._notes(pod),
            pool=settings.pool,
            interfaces=(interface,) if interface is not None else (),
            start=interface is None or interface.firewall is None,
        )


def id_mappings(pid: int) -> tuple[IdMapping, ...]:
    """The uid mappings of a process's user namespace; empty when it is the host's own."""
    return parse_id_map(Path(f"/proc/{pid}/uid_map").read_text())


def parse_id_map(table: str) -> tuple[IdMapping, ...]:
    """What /proc/PID/uid_map says (user_namespaces(7)); empty for the table of the host's own namespace."""
    rows = [tuple(map(int, line.split())) for line in table.splitlines()]
    if rows == [(0, 0, 0xFFFFFFFF)]:
        return ()
    return tuple(
        IdMapping(container_id=inside, host_id=outside, length=length) for inside, outside, length in rows
    )
