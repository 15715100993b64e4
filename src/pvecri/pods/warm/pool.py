# SPDX-License-Identifier: Apache-2.0
"""The CTs that wait for a pod: created in the background, claimed by RunPodSandbox, adopted after a restart.

A warm CT is a row of the store like a pod's, with an id that becomes the pod's: a claim is one write of that row,
and at each moment the CT's notes name the row that owns it (decision 0078). So whatever is cut off leaves a row
that recovery.py removes, with its CT. docs/warm-pods.md describes the whole.

No await stands between the choice of a CT and its claim. Only what has not been claimed waits; a CT that a pod has
had is destroyed with the pod.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial

from msgspec.structs import replace

from pvecri.concurrency import beside
from pvecri.config.settings import ProxmoxConfig
from pvecri.errors import FailedPrecondition, PvecriError, ResourceExhausted
from pvecri.linux import accounting
from pvecri.model import (
    ProxmoxInterface,
    Resources,
    Sandbox,
    SandboxConfig,
    SandboxId,
    SandboxMetadata,
    SandboxPhase,
    WarmCt,
)
from pvecri.observability import metrics
from pvecri.pods import files
from pvecri.pods.registry import PodEntry, Registry
from pvecri.pods.sandbox.ct import SandboxCts
from pvecri.pods.sandbox.ct_tags import own_tags
from pvecri.pods.sandbox.stop import SandboxTeardown
from pvecri.pods.warm.demand import CtKind, Demand
from pvecri.proxmox.api import ProxmoxApi
from pvecri.proxmox.ctspec import tags_parameter
from pvecri.proxmox.errors import CtNotFound
from pvecri.supervision import Supervisor

log = logging.getLogger(__name__)

TAG = "pvecri-warm"
"""The tag of a CT that waits, besides proxmox.tags."""

HOSTNAME = "pvecri-warm"

MEMORY_LIMIT = 32 << 20
"""Bytes that a CT may use while it waits; its init needs less than two MiB."""

INTERVAL = 30.0
"""Seconds between two looks at the demand if no pod asks for a CT."""

YIELD_TIMEOUT = 5.0
"""Seconds for which the next CT waits for the starts of pods that have claimed one."""

CHECK_INTERVAL = 300.0
"""Seconds between two reads of a waiting CT's config, as foreign_cts.py reads those of others."""


class WarmCtLost(FailedPrecondition):
    """A warm CT could not be given to the pod that had claimed it: the pod needs a new CT."""


class WarmPool:
    """`keep` maintains the CTs of one kind; the other methods are called by what creates and recovers pods."""

    def __init__(
        self,
        settings: ProxmoxConfig,
        registry: Registry,
        cts: SandboxCts,
        proxmox: ProxmoxApi,
        teardown: SandboxTeardown,
        supervisor: Supervisor,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._cts = cts
        self._proxmox = proxmox
        self._teardown = teardown
        self._supervisor = supervisor
        self._demand = {
            CtKind.UNPRIVILEGED: Demand(settings.warm_pods.unprivileged),
            CtKind.PRIVILEGED: Demand(settings.warm_pods.privileged),
        }
        self._wanted = {kind: asyncio.Event() for kind in CtKind}
        self._waiting: dict[SandboxId, PodEntry] = {}
        """The CTs that can be claimed, the oldest first."""
        self._checked: dict[SandboxId, float] = {}
        self._claimed: dict[SandboxId, Sandbox] = {}
        """The values before the claims whose `handing_over` has not begun."""
        self._starting: set[SandboxId] = set()
        """The pods with a claimed CT whose start has not ended."""
        self._none_starts = asyncio.Event()
        self._none_starts.set()
        self._create_lock = asyncio.Lock()
        cts.make_room = self._make_room

    @property
    def kinds(self) -> list[CtKind]:
        """The kinds of which the settings allow warm CTs."""
        return [kind for kind, demand in self._demand.items() if demand.limit]

    def waiting(self, kind: CtKind) -> int:
        """How many CTs of a kind wait."""
        return sum(1 for _ in self._of_kind(kind))

    def _of_kind(self, kind: CtKind) -> Iterator[PodEntry]:
        return (entry for entry in list(self._waiting.values()) if _kind(entry.value) is kind)

    # -- claims -----------------------------------------------------------------------------------------------

    async def obtain(
        self, reserve: Callable[..., PodEntry], start: Callable[[PodEntry], Awaitable[None]]
    ) -> PodEntry:
        """A pod that `reserve` has stored and `start` has started, with a warm CT if one waits and can be used.

        `reserve` stores the pod without an await; with `warm=True` it calls `claim`, and `init` is set if it has
        claimed a CT. `start` uses `handing_over`, and undoes what it has done if it raises. If the CT cannot be
        used, both are called a second time, `reserve` with `warm=False`.
        """
        pod = reserve(warm=True)
        if pod.init is None:
            await start(pod)
            return pod
        try:
            with self._counted(pod):
                await start(pod)
        except WarmCtLost as lost:
            log.info("pod %s gets a new CT: %s", pod.value.name, lost)
            pod = reserve(warm=False)
            await start(pod)
        return pod

    @contextmanager
    def _counted(self, pod: PodEntry) -> Iterator[None]:
        self._starting.add(pod.id)
        self._none_starts.clear()
        try:
            yield
        finally:
            self._claimed.pop(pod.id, None)
            self._starting.discard(pod.id)
            if not self._starting:
                self._none_starts.set()

    def claim(self, sandbox: Sandbox, interface: ProxmoxInterface | None) -> PodEntry | None:
        """The pod `sandbox` with a warm CT, whose id it gets; None if there is none for it.

        For the `reserve` of `obtain`. AlreadyExists as from `Registry.add_pod`.
        """
        kind = _kind(sandbox)
        demand = self._demand[kind]
        if not demand.limit:
            return None
        if interface is not None:
            _log_cold(sandbox, "unfit", "an interface of Proxmox's has to exist before the CT starts")
            return None
        demand.record(time.monotonic())
        self._wanted[kind].set()
        fingerprint = self._cts.fingerprint(privileged=sandbox.privileged)
        entry = next((each for each in self._of_kind(kind) if _fits(each, fingerprint) and each.alive), None)
        if entry is None:
            _log_cold(sandbox, "none", f"no {kind.value} CT waits")
            return None
        warm = entry.value
        self._registry.claim_warm(
            entry,
            replace(
                sandbox,
                id=warm.id,
                vmid=warm.vmid,
                mappings=warm.mappings,
                ct_made=True,
                ct_volume=warm.ct_volume,
                tagged=warm.tagged,
            ),
        )
        self._forget(entry)
        self._claimed[entry.id] = warm
        return entry

    @asynccontextmanager
    async def handing_over(self, pod: PodEntry) -> AsyncIterator[None]:
        """Make the CT that `pod` has claimed the pod's in Proxmox, beside the body; nothing for one with a new CT.

        In the body the CT has the pod's hostname, but maybe not yet its limits. After it, WarmCtLost if the CT has
        ended, is locked or was changed by somebody; an error of the body comes first.
        """
        warm = self._claimed.pop(pod.id, None)
        if warm is None:
            yield
            return
        with _lost(warm):
            await self._cts.name(pod)
        async with beside(self._assign(pod, warm)) as assigned:
            yield
            await assigned

    async def _assign(self, pod: PodEntry, warm: Sandbox) -> None:
        assert warm.warm is not None
        tags = {"tags": tags_parameter(own_tags(self._settings, pod.value)) or None} if warm.tagged else {}
        with metrics.POD_STEP_SECONDS.labels("warm_ct").time(), _lost(warm):
            await self._cts.assign(pod, warm.warm.digest, **tags)
            if not pod.alive:
                raise FailedPrecondition("it has ended")
        metrics.WARM_CLAIMS.labels(_kind(warm).value, "claimed").inc()
        log.info("pod %s has claimed CT %d", pod.value.name, pod.value.vmid)

    async def _make_room(self) -> bool:
        """Destroy a waiting CT, for a pod that finds no free VMID; whether there was one."""
        async with self._create_lock:  # one may be on its way
            entry = next(iter(self._waiting.values()), None)
            if entry is None:
                return False
            self._discard(entry, "a pod needs its VMID")
        await self._teardown.finish_removal(entry)
        return True

    # -- the number of CTs ------------------------------------------------------------------------------------

    async def keep(self, kind: CtKind) -> None:
        """Remove what is unfit or too many, and create what is missing, one after the other. Repeatable.

        Raises the error of a create; the caller waits before it tries again.
        """
        self._wanted[kind].clear()
        if self._registry.node_shutdown.under_way:
            return
        if self.waiting(kind):
            await self._cts.prepare()
            await self._check(kind)
        while self.waiting(kind) < self.target(kind):
            await self._wait_for_pods()
            async with self._create_lock:
                if not self._cts.idle.is_set():
                    continue
                try:
                    await self._create(kind)
                except ResourceExhausted as error:
                    log.debug("no warm CT: %s", error)
                    return
        for entry in list(self._of_kind(kind))[self.target(kind) :]:
            self._discard(entry, "there are more than pods ask for")

    async def _wait_for_pods(self) -> None:
        """Wait until no pod is being started: it needs Proxmox and the CPUs more than a CT ahead.

        At most YIELD_TIMEOUT for those with a claimed CT: starts that overlap for ever must not empty the pool.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(YIELD_TIMEOUT):
                await self._none_starts.wait()
        await self._cts.idle.wait()

    def target(self, kind: CtKind) -> int:
        """How many CTs of a kind should wait now."""
        in_use = any(
            _kind(pod.value) is kind and pod.value.phase is not SandboxPhase.REMOVING
            for pod in self._registry.pods()
        )
        memory = accounting.available_memory()
        return self._demand[kind].target(time.monotonic(), in_use=in_use, available_memory=memory)

    async def wait(self, kind: CtKind) -> None:
        """Wait until a pod has asked for a CT of the kind, INTERVAL seconds at most."""
        try:
            async with asyncio.timeout(INTERVAL):
                await self._wanted[kind].wait()
        except TimeoutError:
            return

    async def _check(self, kind: CtKind) -> None:
        """Discard the CTs that would be created differently now, or that somebody has changed."""
        fingerprint = self._cts.fingerprint(privileged=kind is CtKind.PRIVILEGED)
        for entry in self._of_kind(kind):
            if not _fits(entry, fingerprint):
                self._discard(entry, "template or settings have changed since its create")
            elif time.monotonic() >= self._checked.get(entry.id, 0.0) + CHECK_INTERVAL:
                changed = await self._is_changed(entry)
                if entry.id not in self._waiting:
                    continue
                self._checked[entry.id] = time.monotonic()
                if changed:
                    self._discard(entry, "somebody has changed it")

    async def _is_changed(self, entry: PodEntry) -> bool:
        assert entry.value.warm is not None
        try:
            config = await self._proxmox.ct_config(entry.value.vmid)
        except CtNotFound:
            return True
        return config.raw.get("digest") != entry.value.warm.digest

    # -- the life of one --------------------------------------------------------------------------------------

    async def _create(self, kind: CtKind) -> None:
        """Create and start a CT, and add it to those that wait; what fails leaves it to recovery.py."""
        await self._cts.prepare()
        privileged = kind is CtKind.PRIVILEGED
        fingerprint = self._cts.fingerprint(privileged=privileged)
        entry = self._registry.add_warm(_placeholder(SandboxId(secrets.token_hex(32)), privileged, fingerprint))
        try:
            async with entry.lock:
                await self._cts.create(entry)
                # By it the next daemon process recognises the CT's init (ct_ownership.py).
                await asyncio.to_thread(files.make_directory, entry)
                tagged = await self._tag(entry)
                digest = (await self._proxmox.ct_config(entry.value.vmid)).raw["digest"]
                complete = WarmCt(fingerprint=fingerprint, digest=digest)
                self._registry.save_pod(entry, replace(entry.value, warm=complete, tagged=tagged))
        except BaseException:
            self._remove(entry)
            raise
        log.info("CT %d (%s) waits for a pod", entry.value.vmid, kind.value)
        self._add(entry)
        self._checked[entry.id] = time.monotonic()

    async def _tag(self, entry: PodEntry) -> bool:
        """Set the tags; False if Proxmox refuses them, as it may by datacenter.cfg: ct_tags.py reports that."""
        try:
            await self._proxmox.configure_ct(entry.value.vmid, tags=tags_parameter((*self._settings.tags, TAG)))
        except PvecriError as error:
            log.debug("CT %d gets no tag: %s", entry.value.vmid, error)
            return False
        return True

    def adopt(self, entry: PodEntry) -> None:
        """Let a CT wait again that an earlier daemon process created; remove it if it is incomplete or has ended.

        Without Proxmox: `keep` compares it with the settings and with its config. Idempotent.
        """
        if entry.init is None and entry.value.vmid:
            entry.init = self._cts.find_init(entry)
        warm = entry.value.warm
        complete = entry.alive and warm is not None and warm.digest
        allowed = self._demand[_kind(entry.value)]
        if entry.value.phase is SandboxPhase.CREATING and complete and allowed.limit:
            allowed.record(time.monotonic())  # the demand before the restart is unknown: it is kept for a while
            self._add(entry)
        else:
            self._remove(entry)

    def _add(self, entry: PodEntry) -> None:
        if entry.id not in self._waiting:
            self._waiting[entry.id] = entry
            entry.watcher = self._supervisor.until_done("watch of warm CT", partial(self._watch, entry), entry.id)
            self._teardown.shutdowns.watch(entry)

    async def _watch(self, entry: PodEntry) -> None:
        if entry.init is not None:
            await entry.init.wait()
        if entry.id in self._waiting:
            self._discard(entry, "it has ended")
            self._wanted[_kind(entry.value)].set()

    def _discard(self, entry: PodEntry, reason: str) -> None:
        log.info("CT %d does not wait for a pod any more: %s", entry.value.vmid, reason)
        self._forget(entry)
        self._remove(entry)

    def _forget(self, entry: PodEntry) -> None:
        self._waiting.pop(entry.id, None)
        self._checked.pop(entry.id, None)
        if entry.watcher is not None and entry.watcher is not asyncio.current_task():
            entry.watcher.cancel()
        entry.watcher = None

    def _remove(self, entry: PodEntry) -> None:
        self._registry.save_pod(entry, replace(entry.value, phase=SandboxPhase.REMOVING), ending=True)
        self._teardown.removal_pending.set()


def _placeholder(sandbox_id: SandboxId, privileged: bool, fingerprint: str) -> Sandbox:
    return Sandbox(
        id=sandbox_id,
        config=SandboxConfig(
            metadata=SandboxMetadata(name="warm", namespace="", uid=sandbox_id),
            hostname=HOSTNAME,
            resources=Resources(memory_limit=MEMORY_LIMIT),
        ),
        created_at=time.time_ns(),
        phase=SandboxPhase.CREATING,
        privileged=privileged,
        warm=WarmCt(fingerprint=fingerprint),
    )


@contextmanager
def _lost(warm: Sandbox) -> Iterator[None]:
    """WarmCtLost for an error in the context, which counts the claim as lost."""
    try:
        yield
    except BaseException as error:
        metrics.WARM_CLAIMS.labels(_kind(warm).value, "lost").inc()
        if isinstance(error, PvecriError | OSError):
            raise WarmCtLost(f"CT {warm.vmid}, which waited for a pod, cannot be used: {error}") from error
        raise


def _log_cold(sandbox: Sandbox, outcome: str, reason: str) -> None:
    metrics.WARM_CLAIMS.labels(_kind(sandbox).value, outcome).inc()
    log.debug("pod %s gets a new CT: %s", sandbox.name, reason)


def _kind(sandbox: Sandbox) -> CtKind:
    return CtKind.of(privileged=sandbox.privileged)


def _fits(entry: PodEntry, fingerprint: str) -> bool:
    return entry.value.warm is not None and entry.value.warm.fingerprint == fingerprint
