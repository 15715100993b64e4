# SPDX-License-Identifier: Apache-2.0
"""The Proxmox container (CT) of a pod: created, resized, stopped and destroyed; reserving its VMID."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Set
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from pvecri.backoff import Backoff
from pvecri.config.settings import Config, VmidRange
from pvecri.errors import DeadlineExceeded, InternalError, PvecriError, ResourceExhausted
from pvecri.linux import accounting, limits, namespaces, processes
from pvecri.linux.cgroups import EVERY_DEVICE, Cgroups
from pvecri.linux.processes import Process
from pvecri.model import Container, IdMapping, ProxmoxInterface, Resources, SandboxId, Vmid
from pvecri.observability import correlation
from pvecri.pods.registry import PodEntry, Registry
from pvecri.pods.sandbox import ct_kill, ct_notes, kubelet_cgroups, left_cgroups
from pvecri.pods.sandbox.ct_ownership import CtOwnership, NotOwnCt, is_pods_init
from pvecri.pods.sandbox.kubelet_cgroups import KubeletCgroups
from pvecri.pods.sandbox.vmids import Vmids
from pvecri.proxmox import ct_options, rootfs_storage
from pvecri.proxmox.answers import CtConfig, Guest
from pvecri.proxmox.api import ProxmoxApi
from pvecri.proxmox.ctspec import CtSpec, ParameterValue, assignable_parameters, fingerprint, size_parameters
from pvecri.proxmox.errors import CreateUnanswered, CtExists, CtHidden, CtNotFound, ProxmoxError
from pvecri.proxmox.sizing import MEMORY_MIN_MIB, CtSize, ct_size
from pvecri.proxmox.upid import Upid

log = logging.getLogger(__name__)

INIT_NAMES = ("linuxrc", "catatonit")
"""/proc/PID/comm of the CT's init after /sbin/init has exec'ed it; catatonit in CTs of earlier versions."""

POLL_INIT = Backoff(first=0.002, maximum=0.1, factor=1.2)
"""Seconds between polls for a CT's init."""

INIT_OOM_SCORE_ADJ = -998
"""As other runtimes' pause containers have: if memory runs out, a container ends and not the whole pod."""

LAST_LOOK_TIMEOUT = 2.0
"""Seconds to wait for a CT's config before its stop, which does not depend on Proxmox."""

START_CHECK_DELAY = 3.0
START_CHECK_INTERVAL = 2.0
"""Seconds until the first and between further checks of whether Proxmox's start task has failed."""


class SandboxCts:
    """Creates and destroys the CTs of this installation's pods; touches no other CT (ct_ownership.py)."""

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
        self._ownership = CtOwnership(proxmox, config.proxmox.request_timeout)
        self._vmids = Vmids(config.proxmox.vmid_range, config.proxmox.node_name, self._guests, self._used_vmids)
        self._template = ""
        self._arch = ""
        self._node_memory = 0
        self._preparing = asyncio.Lock()
        self._undestroyed: set[Vmid] = set()
        """CTs whose last destroy failed."""
        self._creating: set[SandboxId] = set()
        self.idle = asyncio.Event()
        """Set while no CT is being created for a pod; warm CTs do not count."""
        self.idle.set()
        self.make_room: Callable[[], Awaitable[bool]] = _no_room
        """Called if a pod finds no free VMID; returns whether one was released."""
        self.drop_mounts: Callable[[Process], None] = lambda _: None
        """Called with the init of each new CT (monitor_mounts.py)."""
        self.removal_ended: Callable[[], Awaitable[bool]] = _no_room
        """Called next; waits for the CT of a removed pod and returns whether it is worth to look again."""

    async def prepare(self) -> None:
        """Read the VMIDs in use and the node's memory, and upload the sandbox template. Idempotent."""
        async with self._preparing:  # pods that start at the same time must not upload the template twice
            if not self.prepared:
                await self._prepare()

    async def _prepare(self) -> None:
        self._node_memory = (await self._proxmox.node_status()).memory.total
        await self._vmids.refresh()
        self._template, template = await self._proxmox.ensure_sandbox_template()
        self._arch = template.arch

    @property
    def vmid_range(self) -> VmidRange:
        """The VMIDs of pods."""
        return self._config.proxmox.vmid_range

    @property
    def vmids_free(self) -> int | None:
        """How many of `vmid_range` no known guest of the cluster has; None before Proxmox has listed them."""
        return self._vmids.free

    def listed(self, guests: Iterable[Guest]) -> None:
        """Take over a list of the cluster's guests that was read for another purpose."""
        self._vmids.update({guest.vmid for guest in guests})

    @property
    def prepared(self) -> bool:
        """Whether `prepare` has succeeded."""
        return bool(self._template)

    async def create(self, pod: PodEntry, interface: ProxmoxInterface | None = None) -> None:
        """Create and start the pod's CT, and wait until its init runs; sets `pod.init` and the ID mappings.

        A VMID that another node has taken meanwhile is skipped. DeadlineExceeded after runtime.start_timeout,
        InternalError with the task's error if the start fails.
        """
        with self._counted(pod):
            await self._create(pod, interface)

    @contextmanager
    def _counted(self, pod: PodEntry) -> Iterator[None]:
        if pod.value.warm is not None:
            yield
            return
        self._creating.add(pod.id)
        self.idle.clear()
        try:
            yield
        finally:
            self._creating.discard(pod.id)
            if not self._creating:
                self.idle.set()

    async def _create(self, pod: PodEntry, interface: ProxmoxInterface | None) -> None:
        await self.prepare()
        refused: set[int] = set()
        while True:
            vmid = await self._allocate_vmid(pod, refused)
            # Stored first: after a crash during the create, recovery.py finds the CT by this number.
            self._registry.save_pod(pod, replace(pod.value, vmid=vmid))
            await self._registry.sync()
            correlation.annotate(vmid=str(vmid))
            spec = self._spec(pod, interface)
            try:
                upid = await self._send_create(pod, spec)
                break
            except CtExists:
                log.info("VMID %d belongs to another guest, trying the next", pod.value.vmid)
                self._registry.save_pod(pod, replace(pod.value, vmid=0))
                refused.add(vmid)
            except ProxmoxError:
                self._template = ""  # it may have been deleted from the storage: the next pod uploads it again
                raise
        if interface is not None and interface.firewall is not None:
            # Rules can be set only on an existing CT, and no packet may pass before they are.
            await self._proxmox.protect_ct(pod.value.vmid, interface.firewall)
            await self._proxmox.start_ct(pod.value.vmid)
        # Costs no time: the CT is starting.
        volume = await self._root_volume(pod)
        options = ct_options.of_spec(spec)
        notes = self._notes_fingerprint(pod)
        self._registry.save_pod(pod, replace(pod.value, ct_volume=volume, ct_options=options, ct_notes=notes))
        init = await self._wait_for_init(pod, upid.start_time)
        pod.init = Process(init)
        self._registry.save_pod(pod, replace(pod.value, mappings=id_mappings(init), ct_made=True))
        processes.set_oom_score_adj(init, INIT_OOM_SCORE_ADJ)
        self.drop_mounts(pod.init)
        # Only now: the CT's cgroup is made by its start.
        self._kubelet.mirror(pod)
        if pod.value.privileged:
            # A cgroup's device filter cannot allow what its parent's denies (decision 0050).
            self._cgroups.allow_devices(pod.cgroups.ct, EVERY_DEVICE)

    async def _send_create(self, pod: PodEntry, spec: CtSpec) -> Upid:
        """As `ProxmoxApi.create_ct`; sets `pod.create_unanswered` if the outcome stays unknown."""
        try:
            return await self._proxmox.create_ct(spec)
        except (CreateUnanswered, asyncio.CancelledError):
            pod.create_unanswered = time.monotonic()
            raise

    def fingerprint(self, *, privileged: bool) -> str:
        """Identifies what a CT of this kind is created with and keeps while it runs; empty before `prepare`."""
        return fingerprint(self._base_spec(privileged=privileged)) if self.prepared else ""

    async def name(self, pod: PodEntry) -> None:
        """Set the hostname in a CT that runs already, as `create` does in a new one. OSError if it has ended."""
        assert pod.init is not None
        name = str(assignable_parameters(self._spec(pod, None))["hostname"])
        uts = Path(f"/proc/{pod.init.pid}/ns/uts")
        await asyncio.to_thread(namespaces.run_inside, [uts], partial(socket.sethostname, name))

    async def assign(self, pod: PodEntry, digest: str, **more: ParameterValue | None) -> None:
        """Give a CT that runs already the config that `create` gives a new one for this pod: name, notes, limits.

        One PUT …/config, which has the options of `more` too. ProxmoxError, and nothing is changed, if the config
        has another `digest`; CtLocked at once if it is locked.
        """
        spec, notes = self._spec(pod, None), self._notes_fingerprint(pod)
        await self._proxmox.configure_ct(pod.value.vmid, 0, digest=digest, **assignable_parameters(spec), **more)
        self._registry.save_pod(pod, replace(pod.value, ct_options=ct_options.of_spec(spec), ct_notes=notes))
        self._kubelet.mirror(pod)

    async def resize(self, pod: PodEntry, resources: Resources, overhead: Resources) -> None:
        """Set the size of the running CT (PUT …/config); it takes effect at once. Idempotent."""
        await self.prepare()
        # For a pod without a limit the size is the node's memory, which `prepare` has read.
        size = self._size(pod, resources, overhead)
        await self._proxmox.configure_ct(pod.value.vmid, **size_parameters(size))
        if pod.value.ct_options:
            options = pod.value.ct_options | ct_options.of_size(size)
            self._registry.save_pod(pod, replace(pod.value, ct_options=options))
        self._kubelet.mirror(pod)

    def cpu_weight(self, pod: PodEntry) -> int | None:
        """The CPU weight of the CT's cgroup, in the unit of the machine's cgroup version; None for the default."""
        found = limits.read(self._cgroups, pod.cgroups.ct)
        return found.cpu_weight if found is not None else None

    def pod_resources(self, pod: PodEntry) -> Resources:
        """What the pod as a whole may use, before any change that is under way."""
        config = pod.value.config
        return kubelet_cgroups.pod_resources(config.resources, self._kubelet.pod_limits(config))

    def mirror_limits(self, pod: PodEntry) -> None:
        """Write the kubelet's limits that Proxmox has no option for to the running CT's cgroup. Idempotent."""
        self._kubelet.mirror_own(pod)

    def bound_all(self) -> None:
        """Limit all CTs together as the kubelet limits all pods, if that is configured. Idempotent."""
        self._kubelet.bound_all([pod.value.config for pod in self._registry.pods() if pod.alive])

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
        """The CT's config in Proxmox, option by option; empty if there is no CT."""
        try:
            return (await self._proxmox.ct_config(pod.value.vmid)).raw if pod.value.vmid else {}
        except CtNotFound:
            return {}

    async def stop(self, pod: PodEntry) -> None:
        """End all processes of the pod's CT. Idempotent: a CT that has ended or was never created is no error.

        Kills the CT's init, as Proxmox's stop does, but without its task: LXC's monitor notices the end, cleans up
        and runs Proxmox's hook. That takes seconds on a Proxmox node, and nothing here waits for it. Needs Proxmox
        only for a CT whose create was cut off, and for one with a hookscript, which is run before the end
        (`pre-stop`). DeadlineExceeded if the init does not end.
        """
        if pod.alive:
            config = await self._look_before_stop(pod)
            if config is not None and "hookscript" in config.raw:
                await self.stop_again(pod)
            await ct_kill.kill(pod, self._cgroups)
        elif pod.value.vmid and not pod.value.ct_made:
            try:
                await self.stop_again(pod)
            except NotOwnCt as other:
                log.warning("%s: it is not stopped", other)
        else:
            # The CT with this VMID may be another's by now, or run again (ct_restarts.py).
            ct_kill.kill_containers(pod, self._cgroups)

    def runs(self, pod: PodEntry) -> bool:
        """Whether a CT with the pod's VMID and the init of a pod's CT runs on this machine, whoever started it."""
        return bool(pod.value.vmid) and self._init_pid(pod) is not None

    async def stop_again(self, pod: PodEntry) -> None:
        """Stop the CT, and nothing else of the pod. Idempotent. NotOwnCt if it is not the pod's any more."""
        await self._proxmox.stop_ct(pod.value.vmid, partial(self._ownership.confirm, pod))
        # Containers in the node's PID namespace do not die with the CT's init.
        self._cgroups.kill(pod.cgroups.ct)

    async def destroy(self, pod: PodEntry) -> None:
        """Destroy the pod's CT and release its VMID. Idempotent.

        A CT with that VMID that is not the pod's any more is left as it is; Unavailable if there is none yet,
        because Proxmox may still be processing its create (ct_ownership.py).
        """
        vmid = pod.value.vmid
        if not vmid:
            return
        try:
            await self._destroy(pod)
        except NotOwnCt as other:
            log.warning("%s: it is not destroyed", other)
            left = True
        else:
            left = False
            with suppress(OSError):  # LXC does not always remove cgroups that it did not create
                self._cgroups.remove(pod.cgroups.ct)
        self._undestroyed.discard(vmid)
        self._registry.save_pod(
            pod, replace(pod.value, vmid=0, ct_made=False, ct_volume="", ct_options={}, ct_notes=""), ending=True
        )
        # Last: while a row has the VMID, another pod with it cannot be stored (UNIQUE).
        if not left:
            self._vmids.release(vmid)

    async def _destroy(self, pod: PodEntry) -> None:
        vmid = pod.value.vmid
        await ct_kill.wait_for_monitor(pod)
        # Each try is a task in Proxmox's log, and a storage may be offline for days.
        if vmid in self._undestroyed:
            with suppress(CtNotFound):
                await rootfs_storage.check(self._proxmox, vmid)
        self._undestroyed.add(vmid)
        await self._proxmox.destroy_ct(vmid, partial(self._ownership.confirm_destroy, pod))

    def find_init(self, pod: PodEntry) -> Process | None:
        """The first process of the pod's CT, if it runs on this machine and has run since the pod was created."""
        pid = self._init_pid(pod)
        return None if pid is None or not is_pods_init(pod, pid) else Process(pid)

    def _init_pid(self, pod: PodEntry) -> int | None:
        for pid in self._cgroups.processes(pod.cgroups.init):
            # lxc-start's child is PID 1 of the CT before it executes the init: hence the name.
            if processes.command_name(pid) in INIT_NAMES and processes.innermost_pid(pid) == 1:
                return pid
        return None

    async def _allocate_vmid(self, pod: PodEntry, refused: Set[int]) -> Vmid:
        """As `Vmids.allocate`, without those of which cgroups are left; a warm CT gives way to a pod."""
        busy: set[int] = set()
        while True:
            try:
                vmid = await self._vmids.allocate(refused | busy)
            except ResourceExhausted:
                if pod.value.warm is not None or not (await self.make_room() or await self.removal_ended()):
                    raise
                continue
            if left_cgroups.remove(self._cgroups, vmid):
                return vmid
            busy.add(vmid)

    async def _guests(self) -> Set[int]:
        return {guest.vmid for guest in await self._proxmox.guests()}

    def _used_vmids(self) -> Set[int]:
        return {entry.value.vmid for entry in self._registry.cts()}

    async def _look_before_stop(self, pod: PodEntry) -> CtConfig | None:
        """The config of a running CT; None if Proxmox does not answer at once.

        Records the root volume, and writes the notes again if somebody changed the owner in them.

        While the pod's init runs, the CT is the pod's; once it is stopped, they identify it (ct_ownership.py).
        """
        try:
            async with asyncio.timeout(LAST_LOOK_TIMEOUT):
                config = await self._proxmox.ct_config(pod.value.vmid)
        except (PvecriError, TimeoutError) as error:
            log.debug("reading the config of CT %d of pod %s: %s", pod.value.vmid, pod.value.name, error)
            pod.hidden = isinstance(error, CtHidden)
            return None
        try:
            if pod.value.ct_volume != config.root_volume:  # moved, or created by an earlier version
                self._registry.save_pod(pod, replace(pod.value, ct_volume=config.root_volume), ending=True)
            if ct_notes.owner(config.description).sandbox != pod.id:
                log.warning("the notes of CT %d of pod %s were changed: restored", pod.value.vmid, pod.value.name)
                await self._proxmox.configure_ct(pod.value.vmid, description=self.notes(pod))
        except PvecriError as error:  # what is done with the CT next fails for the same reason, and says so
            log.debug("restoring the notes of CT %d of pod %s: %s", pod.value.vmid, pod.value.name, error)
        return config

    def notes(self, pod: PodEntry) -> str:
        """The notes of the CT as they should be now."""
        if pod.value.warm is not None:
            return ct_notes.describe_warm(pod.value, self._installation, self._config.proxmox.node_name)
        return ct_notes.describe(
            pod.value, self._installation, self._config.proxmox.node_name, _shown(pod), time.time_ns()
        )

    def notes_differ(self, pod: PodEntry) -> bool:
        """Whether the notes that were written last show another state of the pod's containers."""
        return self._notes_fingerprint(pod) != pod.value.ct_notes

    async def write_notes(self, pod: PodEntry) -> None:
        """Write the notes of the running CT. Idempotent; CtLocked at once if somebody has locked it."""
        fingerprint = self._notes_fingerprint(pod)
        await self._proxmox.configure_ct(pod.value.vmid, 0, description=self.notes(pod))
        self._registry.save_pod(pod, replace(pod.value, ct_notes=fingerprint), ending=True)

    def _notes_fingerprint(self, pod: PodEntry) -> str:
        node = self._config.proxmox.node_name
        return ct_notes.fingerprint(pod.value, self._installation, node, _shown(pod))

    async def _root_volume(self, pod: PodEntry) -> str:
        try:
            return (await self._proxmox.ct_config(pod.value.vmid)).root_volume
        except PvecriError as error:  # read again before the CT is stopped
            log.debug("reading the root volume of CT %d: %s", pod.value.vmid, error)
            return ""

    async def _wait_for_init(self, pod: PodEntry, since: int) -> int:
        """The PID on the node of the CT's init, once it runs; `since` is the create's start in epoch seconds.

        Polls the CT's cgroup. Proxmox does not return the UPID of the start that follows a create, and polling
        its API costs more CPU than the start itself: it is queried only if the start is late.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._config.runtime.start_timeout
        next_check = loop.time() + START_CHECK_DELAY
        for delay in POLL_INIT.delays():
            pid = self._init_pid(pod)
            if pid is not None:
                return pid
            now = loop.time()
            if now > deadline:
                raise DeadlineExceeded(
                    f"CT {pod.value.vmid} did not start within {self._config.runtime.start_timeout:g} s "
                    "(runtime.start_timeout)"
                )
            if now > next_check:
                next_check = now + START_CHECK_INTERVAL
                problem = await self._proxmox.failed_start(pod.value.vmid, since)
                if problem is not None:
                    raise InternalError(f"Proxmox: CT {pod.value.vmid} did not start: {problem}")
            await asyncio.sleep(delay)
        raise AssertionError("delays never end")

    def _spec(self, pod: PodEntry, interface: ProxmoxInterface | None) -> CtSpec:
        sandbox = pod.value.config
        return replace(
            self._base_spec(privileged=pod.value.privileged),
            vmid=pod.value.vmid,
            # A kubelet sends no hostname for a pod in the node's network.
            hostname=sandbox.hostname or sandbox.metadata.name,
            size=self._size(pod, self.pod_resources(pod), sandbox.overhead),
            description=self.notes(pod),
            interfaces=(interface,) if interface is not None else (),
            start=interface is None or interface.firewall is None,
        )

    def _base_spec(self, *, privileged: bool) -> CtSpec:
        """What all CTs of a kind have in common."""
        settings = self._config.proxmox
        return CtSpec(
            vmid=Vmid(0),
            hostname="",
            template=self._template,
            storage=settings.storage,
            size=CtSize(memory_mib=MEMORY_MIN_MIB),
            arch=self._arch,
            rootfs_size_gib=settings.rootfs_size_gib,
            unprivileged=not privileged,
            pool=settings.pool,
        )


async def _no_room() -> bool:
    return False


def _shown(pod: PodEntry) -> list[Container]:
    """The pod's containers, oldest first, without those that no list shows."""
    shown = [each.value for each in pod.containers.values() if each.created and not each.hidden]
    return sorted(shown, key=lambda container: container.created_at)


def id_mappings(pid: int) -> tuple[IdMapping, ...]:
    """The uid mappings of a process's user namespace; empty if it is the node's."""
    return parse_id_map(Path(f"/proc/{pid}/uid_map").read_text())


def parse_id_map(table: str) -> tuple[IdMapping, ...]:
    """Parse /proc/PID/uid_map (user_namespaces(7)); empty for the identity map of the node's user namespace."""
    rows = [tuple(map(int, line.split())) for line in table.splitlines()]
    if rows == [(0, 0, 0xFFFFFFFF)]:
        return ()
    return tuple(
        IdMapping(container_id=inside, host_id=outside, length=length) for inside, outside, length in rows
    )
