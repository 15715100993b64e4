# SPDX-License-Identifier: Apache-2.0
"""The Proxmox VE API, as much of it as a pod's life needs.

Every call that changes a CT waits for its task, so when it returns the thing is done. Calls that find things as
they want them (stop a stopped CT, destroy one that is gone) succeed. A CT whose lock is held by another task is
tried again until proxmox.task_timeout.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from pvecri.backoff import Backoff
from pvecri.config import ProxmoxConfig
from pvecri.errors import NotFound
from pvecri.model import Firewall, Vmid
from pvecri.proxmox import privileges
from pvecri.proxmox.answers import (
    CtConfig,
    CtStatus,
    Guest,
    NodeStatus,
    StorageConfig,
    StorageItem,
    StorageStatus,
    TaskState,
    Version,
    ct_config,
)
from pvecri.proxmox.ctspec import CtSpec, ParameterValue, create_parameters
from pvecri.proxmox.errors import (
    CtAlreadyRunning,
    CtExists,
    CtHidden,
    CtLocked,
    CtNotFound,
    CtNotRunning,
    Forbidden,
    ParameterError,
    ProxmoxError,
)
from pvecri.proxmox.image_templates import ImageTemplates
from pvecri.proxmox.tasks import Tasks, parse_upid
from pvecri.proxmox.template import SandboxTemplate, sandbox_template
from pvecri.proxmox.transport import Call, ConnectionLost, Transport
from pvecri.proxmox.upid import Upid
from pvecri.proxmox.upload import multipart

T = TypeVar("T")

CREATE_LOCK = "create"
"""The lock of a CT that is being created; until that is done its config says nothing else."""

TRANSIENT_LOCKS = frozenset((CREATE_LOCK, "destroyed"))
"""Locks of configs that name no owner: at the end of a destroy only ``lock: destroyed`` is left of a config."""

HELD_LOCK_TIMEOUT = 60.0
"""Seconds to wait for other locks of configs: a backup's may last for hours, and the kubelet gives up
after two minutes, with an error that names no lock.
"""

LOCKED = Backoff(first=0.25, maximum=4.0)
"""Seconds between tries of a CT that is locked."""


class ProxmoxApi:
    """One node of a Proxmox VE cluster, seen through its API. Use between `start` and `close`.

    All calls raise Unavailable when Proxmox cannot be reached, PermissionDenied when it refuses our account,
    DeadlineExceeded when a task outlasts proxmox.task_timeout, and ProxmoxError or one of its kinds when it says
    no.
    """

    def __init__(self, config: ProxmoxConfig, *, image_storage: str = "") -> None:
        """`image_storage` is where `image_templates` will work, if at all: that takes privileges of its own."""
        self._config = config
        self._image_storage = image_storage
        self._node = config.node_name
        self._transport = Transport(config)
        self._tasks = Tasks(self._transport, config.task_timeout)

    async def start(self) -> None:
        """Open the session; nothing is sent yet. ConfigError when the settings cannot be used."""
        await self._transport.start()

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        await self._transport.close()

    # -- the node and its storages ---------------------------------------------------------------------------

    async def version(self) -> Version:
        """GET /version: needs no privilege, only valid credentials."""
        return await self._get("/version", "ask for the version", Version)

    async def node_status(self) -> NodeStatus:
        """GET /nodes/{node}/status: memory in bytes and the number of CPUs."""
        return await self._get(f"/nodes/{self._node}/status", f"ask for node {self._node}", NodeStatus)

    async def storage_status(self, storage: str) -> StorageStatus:
        """GET /nodes/{node}/storage/{storage}/status."""
        path = f"/nodes/{self._node}/storage/{storage}/status"
        return await self._get(path, f"ask for storage {storage}", StorageStatus)

    async def storage_config(self, storage: str) -> StorageConfig:
        """What storage.cfg says of a storage (GET /storage). NotFound when our account sees none of that name."""
        for entry in await self._get("/storage", f"ask what storage {storage} is", list[StorageConfig]):
            if entry.storage == storage:
                return entry
        raise NotFound(
            f"storage {storage}: Proxmox has none of that name, or our account lacks Datastore.AllocateSpace on it"
        )

    async def permissions(self, path: str) -> frozenset[str]:
        """GET /access/permissions?path=…: our privileges on an ACL path, such as `/storage/local`."""
        call = Call(
            method="GET",
            path="/access/permissions",
            doing=f"ask for the privileges on {path}",
            parameters={"path": path},
        )
        return privileges.effective(path, await self._transport.call(call, dict[str, dict[str, bool]]))

    async def missing_privileges(self) -> list[str]:
        """What our account lacks of privileges.needed, as `path: privilege, …`; empty when all is well."""
        wanted = privileges.needed(self._config, self._node, self._image_storage)
        granted = {path: await self.permissions(path) for path in wanted}
        return privileges.missing(wanted, granted)

    # -- guests ----------------------------------------------------------------------------------------------

    async def guests(self) -> list[Guest]:
        """GET /cluster/resources?type=vm: the guests of the whole cluster that our account may see."""
        return await self._get("/cluster/resources", "list the guests", list[Guest], type="vm")

    async def vmid_taken(self, vmid: Vmid) -> bool:
        """Whether a guest of the cluster has the VMID, whether our account sees it or not.

        GET /cluster/nextid with `vmid` asks for no privilege.
        """
        try:
            await self._get("/cluster/nextid", f"ask whether VMID {vmid} is taken", str, vmid=vmid)
        except ParameterError as error:
            if "already exists" not in error.errors.get("vmid", ""):
                raise
            return True
        return False

    async def ct_status(self, vmid: Vmid) -> CtStatus:
        """GET …/status/current, current to the moment. CtNotFound when there is no such CT."""
        doing = f"ask for CT {vmid}"
        async with self._told_apart(vmid, doing):
            return await self._get(f"{self._ct(vmid)}/status/current", doing, CtStatus)

    async def ct_config(self, vmid: Vmid) -> CtConfig:
        """GET …/config, with pending changes applied. CtNotFound when there is no such CT, CtHidden when
        unseen.
        """
        return await self._config_of(vmid, f"read the config of CT {vmid}")

    async def _config_of(self, vmid: Vmid, doing: str) -> CtConfig:
        path = f"{self._ct(vmid)}/config"
        async with self._told_apart(vmid, doing):
            return ct_config(await self._get(path, doing, dict[str, object]))

    async def idle_ct_config(self, vmid: Vmid, timeout: float | None = None) -> CtConfig:
        """As `ct_config`, once the CT is neither being created nor being destroyed, by whomever.

        A CT joins its pool at the end of its create and leaves it before the end of its destroy, so a pool's
        account does not see it then. CtNotFound when there is none; CtHidden or CtLocked when that lasts longer
        than `timeout` seconds (default: proxmox.task_timeout).
        """

        async def attempt() -> CtConfig:
            config = await self.ct_config(vmid)
            if config.lock in TRANSIENT_LOCKS:
                raise CtLocked(f"read the config of CT {vmid}", f"CT is locked ({config.lock})")
            return config

        return await self._unlocked(attempt, timeout)

    async def create_ct(self, spec: CtSpec) -> Upid:
        """Make a CT (POST /nodes/{node}/lxc) and wait until it is made.

        The tags are left out: Proxmox checks them on /vms/VMID itself, and the CT is in no pool yet; set them
        later (`configure_ct`). With `spec.start` Proxmox then starts it in a second task whose name it does not
        tell: wait for the CT's init, and when it does not come ask `failed_start` with the returned UPID's
        `start_time`. Raises CtExists when the VMID is taken, at once and without a task: take the next. A failed
        task leaves no CT behind; a cancelled call may.
        """
        doing = f"create CT {spec.vmid}"
        call = Call(
            method="POST",
            path=f"/nodes/{self._node}/lxc",
            doing=doing,
            parameters=create_parameters(spec),
        )
        try:
            upid = parse_upid(await self._transport.call(call, str), doing)
        except ConnectionLost:
            upid = await self._create_again(call, spec)
        await self._tasks.wait(upid, doing)
        return upid

    async def start_ct(self, vmid: Vmid) -> None:
        """Start a CT; one that runs is left alone. CtNotFound when there is none."""
        try:
            await self._task("POST", vmid, "/status/start", f"start CT {vmid}")
        except CtAlreadyRunning:
            return

    async def stop_ct(self, vmid: Vmid) -> None:
        """Kill what runs in a CT; one that is stopped, or not there, is left alone."""
        try:
            await self._task("POST", vmid, "/status/stop", f"stop CT {vmid}")
        except (CtNotRunning, CtNotFound):
            return

    async def shutdown_ct(self, vmid: Vmid, timeout: int) -> None:
        """Ask a CT's init to end, and kill it after `timeout` seconds; idempotent as `stop_ct` is."""
        try:
            await self._task(
                "POST",
                vmid,
                "/status/shutdown",
                f"shut CT {vmid} down",
                timeout=timeout,
                forceStop=True,
            )
        except (CtNotRunning, CtNotFound):
            return

    async def destroy_ct(self, vmid: Vmid, *, force: bool = True, purge: bool = True) -> None:
        """Remove a CT with its disks; one that is gone is no error.

        `force` kills it when it runs (slower than `stop_ct` first); `purge` takes it out of backup jobs,
        replication and HA. Proxmox takes its firewall rules and ACLs away either way.
        """
        try:
            await self._task("DELETE", vmid, "", f"destroy CT {vmid}", force=force, purge=purge)
        except CtNotFound:
            return

    async def configure_ct(self, vmid: Vmid, **changes: ParameterValue | None) -> None:
        """Change options (PUT …/config); None takes one out.

        On a running CT memory, swap, cpulimit, cpuunits, tags and description take effect at once; a new hostname
        shows in Proxmox at once and inside the CT from its next start.
        """
        parameters: dict[str, ParameterValue] = {
            name: value for name, value in changes.items() if value is not None
        }
        removed = [name for name, value in changes.items() if value is None]
        if removed:
            parameters["delete"] = ",".join(sorted(removed))
        if not parameters:
            return
        call = Call(
            method="PUT",
            path=f"{self._ct(vmid)}/config",
            doing=f"configure CT {vmid}",
            parameters=parameters,
            repeatable=True,
        )
        async with self._told_apart(vmid, call.doing):
            await self._unlocked(
                lambda: self._transport.call(call, object),
                before_repeat=lambda: self._check_lock(vmid, call.doing),
            )

    async def protect_ct(self, vmid: Vmid, firewall: Firewall) -> None:
        """Give a new CT these firewall rules and switch its firewall on.

        The options are PUT …/firewall/options. A rule (POST …/firewall/rules) goes before those that are there, so
        they are sent last first; Proxmox removes them with the CT.
        """
        path, doing = f"{self._ct(vmid)}/firewall", f"set the firewall of CT {vmid}"
        parameters: dict[str, ParameterValue]
        for rule in reversed(firewall.rules):
            parameters = {"type": rule.direction, "action": rule.action, "enable": 1, **rule.options}
            call = Call(method="POST", path=f"{path}/rules", doing=doing, parameters=parameters)
            await self._transport.call(call, object)
        parameters = {**firewall.options, "enable": 1}
        call = Call(method="PUT", path=f"{path}/options", doing=doing, parameters=parameters, repeatable=True)
        await self._transport.call(call, object)

    async def failed_start(self, vmid: Vmid, since: int = 0) -> str | None:
        """Why the last start of a CT failed, or None when it did not (it succeeded, runs, or never was).

        Only starts at `since` (epoch seconds, the node's clock) or later count: a VMID may have had another life.
        """
        doing = f"start CT {vmid}"
        entry = await self._tasks.last(vmid, "vzstart", self._node, since)
        if entry is None:
            return None
        # The list says RUNNING of an active task, and for some time after its end: nobody reaps the worker that
        # the create's worker left behind. What the task itself says is exact.
        upid = parse_upid(entry.upid, doing)
        status = await self._tasks.status(upid, doing)
        if status.status is not TaskState.STOPPED or status.succeeded:
            return None
        log = await self._tasks.log_end(upid)
        return f"{status.exitstatus} [{log}]" if log else status.exitstatus

    # -- templates -------------------------------------------------------------------------------------------

    async def find_template(self, name: str) -> str | None:
        """The volume id of a CT template on proxmox.template_storage, or None when it has none of that name."""
        storage = self._config.template_storage
        path = f"/nodes/{self._node}/storage/{storage}/content"
        items = await self._get(path, f"list the templates of {storage}", list[StorageItem], content="vztmpl")
        volid = f"{storage}:vztmpl/{name}"
        return volid if any(item.volid == volid for item in items) else None

    async def ensure_template(self, content: bytes | Path, name: str) -> str:
        """Put a CT template on proxmox.template_storage unless it has one of that name; returns its volume id.

        A name must stand for one content for ever, so carry a hash in it. Templates of other names are left alone:
        another node that shares the storage may use them.
        """
        if found := await self.find_template(name):
            return found
        data = content if isinstance(content, bytes) else await asyncio.to_thread(content.read_bytes)
        await self._upload(data, name)
        return f"{self._config.template_storage}:vztmpl/{name}"

    def image_templates(self, timeout: float) -> ImageTemplates:
        """OCI images as templates on `image_storage`; `timeout` is for one pull, in seconds."""
        return ImageTemplates(self._transport, Tasks(self._transport, timeout), self._node, self._image_storage)

    async def ensure_sandbox_template(self) -> tuple[str, SandboxTemplate]:
        """Build the sandbox template from this machine's programs and have it on the storage.

        Returns its volume id, and the template (for its architecture). FailedPrecondition names a package that is
        missing here.
        """
        template = await asyncio.to_thread(sandbox_template)
        found = await self.find_template(template.name)
        if found is None:
            found = await self.ensure_template(await asyncio.to_thread(template.archive), template.name)
        return found, template

    async def _upload(self, data: bytes, name: str) -> None:
        storage = self._config.template_storage
        fields = {
            "content": "vztmpl",
            "checksum-algorithm": "sha256",
            "checksum": hashlib.sha256(data).hexdigest(),
        }
        body, content_type = multipart(name, data, fields)
        call = Call(
            method="POST",
            path=f"/nodes/{self._node}/storage/{storage}/upload",
            doing=f"upload {name} to storage {storage}",
            body=body,
            content_type=content_type,
            repeatable=True,
        )
        upid = parse_upid(await self._transport.call(call, str), call.doing)
        await self._tasks.wait(upid, call.doing)

    # -- the ways of a call ----------------------------------------------------------------------------------

    def _ct(self, vmid: Vmid) -> str:
        return f"/nodes/{self._node}/lxc/{vmid}"

    async def _get(self, path: str, doing: str, into: type[T], **parameters: ParameterValue) -> T:
        return await self._transport.call(Call(method="GET", path=path, doing=doing, parameters=parameters), into)

    async def _task(self, method: str, vmid: Vmid, path: str, doing: str, **parameters: ParameterValue) -> None:
        """A call on a CT, at `path` below it, that starts a task, waited for.

        All of these may be repeated: see the class's errors.
        """
        path = f"{self._ct(vmid)}{path}"
        call = Call(method=method, path=path, doing=doing, parameters=parameters, repeatable=True)

        async def attempt() -> None:
            async with self._told_apart(vmid, doing):
                await self._tasks.wait(parse_upid(await self._transport.call(call, str), doing), doing)

        # Each attempt is a task of its own, and stands in Proxmox's task log when it fails.
        await self._unlocked(attempt, before_repeat=lambda: self._check_lock(vmid, doing))

    async def _check_lock(self, vmid: Vmid, doing: str) -> None:
        """CtLocked while there is a lock in the CT's config; CtNotFound when there is no such CT."""
        lock = (await self._config_of(vmid, doing)).lock
        if lock:
            raise CtLocked(doing, f"CT is locked ({lock})")

    @asynccontextmanager
    async def _told_apart(self, vmid: Vmid, doing: str) -> AsyncIterator[None]:
        """Find out what a 403 means in what is done with a CT meanwhile.

        CtNotFound for a CT that does not exist, CtHidden for one that our account would see if it were in the
        pool, else Forbidden.
        """
        try:
            yield
        except Forbidden as refused:
            if not await self.vmid_taken(vmid):
                raise CtNotFound(doing, f"CT {vmid} does not exist") from refused
            if any(guest.vmid == vmid for guest in await self.guests()):
                raise
            if "VM.Audit" not in await self.permissions(privileges.pods_path(self._config)):
                raise  # it sees no CT at all
            raise CtHidden(
                f"Proxmox: {doing}: CT {vmid} exists, but our account does not see it: it is being created, or is "
                f"not in the pool {self._config.pool!r} (proxmox.pool)"
            ) from refused

    async def _unlocked(
        self,
        attempt: Callable[[], Awaitable[T]],
        timeout: float | None = None,
        before_repeat: Callable[[], Awaitable[None]] | None = None,
    ) -> T:
        """Try until the CT's lock is free, and it is seen; CtLocked or CtHidden after `timeout` seconds
        (default: proxmox.task_timeout), or HELD_LOCK_TIMEOUT.

        `before_repeat` precedes every attempt but the first, and spares it by raising the same errors.
        """
        clock = asyncio.get_running_loop().time
        seconds = self._config.task_timeout if timeout is None else timeout
        begun = clock()
        repeated = False
        for delay in LOCKED.delays():
            try:
                if repeated and before_repeat is not None:
                    await before_repeat()
                return await attempt()
            except (CtLocked, CtHidden) as refused:
                if clock() + delay > begun + _lock_timeout(refused, seconds):
                    raise
            repeated = True
            await asyncio.sleep(delay)
        raise AssertionError("delays never end")

    async def _create_again(self, call: Call, spec: CtSpec) -> Upid:
        """After a create that got no answer: find what became of it, or send it once more.

        The description is unlike any other CT's, so a CT of our VMID that carries it is the one we asked for.
        CtExists when the VMID is another's.
        """
        try:
            existing = await self._config_with_description(spec.vmid)
        except CtNotFound:
            return parse_upid(await self._transport.call(call, str), call.doing)
        if existing.description.strip() != spec.description.strip():
            raise CtExists(call.doing, f"the answer was lost, and VMID {spec.vmid} is taken by another CT now")
        entry = await self._tasks.last(spec.vmid, "vzcreate", self._node, since=0)
        if entry is None:
            raise ProxmoxError(call.doing, "the answer was lost, and its task cannot be found")
        return parse_upid(entry.upid, call.doing)

    async def _config_with_description(self, vmid: Vmid) -> CtConfig:
        """The CT's config, once it says whose it is: while it is being created it may not, or not be seen."""
        try:
            config = await self.ct_config(vmid)
        except CtHidden:
            return await self.idle_ct_config(vmid)
        if config.lock == CREATE_LOCK and not config.description:
            return await self.idle_ct_config(vmid)
        return config


def _lock_timeout(refused: CtLocked | CtHidden, timeout: float) -> float:
    """How long to try what was refused so."""
    held = isinstance(refused, CtLocked) and refused.lock and refused.lock not in TRANSIENT_LOCKS
    return min(timeout, HELD_LOCK_TIMEOUT) if held else timeout
