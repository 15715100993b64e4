# SPDX-License-Identifier: Apache-2.0
"""The Proxmox VE API calls that pods need (decision 0020).

Every call that changes a CT waits for its task. Stopping and destroying are idempotent. Calls on a CT that another
task has locked are retried until proxmox.task_timeout.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from pvecri.backoff import Backoff
from pvecri.config.settings import ProxmoxConfig
from pvecri.errors import NotFound
from pvecri.model import Firewall, Vmid
from pvecri.proxmox import privileges
from pvecri.proxmox.answers import (
    CtConfig,
    CtEntry,
    DatacenterOptions,
    Guest,
    NodeStatus,
    StorageConfig,
    StorageItem,
    StorageStatus,
    TaskEntry,
    TaskState,
    Version,
    ct_config,
)
from pvecri.proxmox.creation import CREATE_LOCK, Creation
from pvecri.proxmox.ctspec import CtSpec, ParameterValue
from pvecri.proxmox.errors import (
    ConnectionLost,
    CtAlreadyRunning,
    CtHidden,
    CtLocked,
    CtNotFound,
    CtNotRunning,
    Forbidden,
    ParameterError,
    task_failure,
)
from pvecri.proxmox.image_templates import ImageTemplates
from pvecri.proxmox.tasks import Tasks, parse_upid
from pvecri.proxmox.template import SandboxTemplate, sandbox_template
from pvecri.proxmox.transport import Call, Transport
from pvecri.proxmox.upid import Upid
from pvecri.proxmox.upload import FILE_TIMEOUT, upload_template

T = TypeVar("T")

Confirmation = Callable[[], Awaitable[None]]
"""Raises unless a request may still be sent."""

TRANSIENT_LOCKS = frozenset((CREATE_LOCK, "destroyed"))
"""Locks of configs without a description: near the end of a destroy only `lock: destroyed` is left."""

HELD_LOCK_TIMEOUT = 60.0
"""Seconds to wait for other locks of a CT: a backup's may last for hours, and the kubelet gives up after two
minutes, with an error that names no lock. For a flock each try is a task of its own, which waits ten seconds.
"""

LOCKED = Backoff(first=0.25, maximum=4.0)
"""Seconds between tries of a CT that is locked."""


class ProxmoxApi:
    """The API of one node of a Proxmox VE cluster. Use between `start` and `close`.

    All calls raise Unavailable if Proxmox cannot be reached, PermissionDenied if our account lacks a privilege,
    DeadlineExceeded if a task takes longer than proxmox.task_timeout, and ProxmoxError or one of its kinds if
    Proxmox refuses.
    """

    def __init__(self, config: ProxmoxConfig, *, image_storage: str = "") -> None:
        """`image_storage` is the storage of `image_templates`, which needs more privileges; empty for none."""
        self._config = config
        self._image_storage = image_storage
        self._node = config.node_name
        self._transport = Transport(config)
        self._tasks = Tasks(self._transport, config.task_timeout)
        self._creation = Creation(self._transport, self._tasks, self._node, self.ct_config, self.idle_ct_config)

    async def start(self) -> None:
        """Open the session; nothing is sent yet. ConfigError for invalid credentials or certificates."""
        await self._transport.start()

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        await self._transport.close()

    # -- the node and its storages ---------------------------------------------------------------------------

    async def version(self) -> Version:
        """GET /version: needs valid credentials, and no privilege."""
        return await self._get("/version", "get the version", Version)

    async def node_status(self) -> NodeStatus:
        """GET /nodes/{node}/status."""
        return await self._get(f"/nodes/{self._node}/status", f"get the status of node {self._node}", NodeStatus)

    async def storage_status(self, storage: str) -> StorageStatus:
        """GET /nodes/{node}/storage/{storage}/status. NotFound if there is no storage of that name."""
        path = f"/nodes/{self._node}/storage/{storage}/status"
        try:
            return await self._get(path, f"get the status of storage {storage}", StorageStatus)
        except ParameterError as error:
            if "No such storage" in error.errors.get("storage", ""):
                raise NotFound(f"storage {storage} does not exist in Proxmox") from error
            raise

    async def storage_config(self, storage: str) -> StorageConfig:
        """A storage's entry in storage.cfg (GET /storage). NotFound if our account sees none of that name."""
        # Not GET /storage/{storage}: that one needs Datastore.Allocate, the right to remove the storage.
        for entry in await self._get("/storage", f"get the config of storage {storage}", list[StorageConfig]):
            if entry.storage == storage:
                return entry
        raise NotFound(
            f"storage {storage} does not exist in Proxmox, or our account lacks Datastore.AllocateSpace on it"
        )

    async def permissions(self, path: str) -> frozenset[str]:
        """GET /access/permissions?path=…: our privileges on an ACL path, such as `/storage/local`."""
        kind, action = dict[str, dict[str, bool]], f"get the privileges on {path}"
        return privileges.effective(path, await self._get("/access/permissions", action, kind, path=path))

    async def missing_privileges(self) -> list[str]:
        """The privileges of privileges.needed that our account lacks, as `path: privilege, …`."""
        wanted = privileges.needed(self._config, self._node, self._image_storage)
        granted = {path: await self.permissions(path) for path in wanted}
        return privileges.missing(wanted, granted)

    async def datacenter_options(self) -> DatacenterOptions:
        """GET /cluster/options: needs no privilege, and shows more with Sys.Audit on `/`."""
        return await self._get("/cluster/options", "get the datacenter's options", DatacenterOptions)

    # -- guests ----------------------------------------------------------------------------------------------

    async def guests(self) -> list[Guest]:
        """GET /cluster/resources?type=vm: the guests of the whole cluster that our account sees."""
        return await self._get("/cluster/resources", "list the guests", list[Guest], type="vm")

    async def cts(self) -> list[CtEntry]:
        """GET /nodes/{node}/lxc: the CTs of this node that our account sees, as they are now."""
        return await self._get(f"/nodes/{self._node}/lxc", "list the CTs", list[CtEntry])

    async def vmid_taken(self, vmid: Vmid) -> bool:
        """Whether a guest of the cluster has the VMID, also one that our account does not see.

        GET /cluster/nextid with `vmid` needs no privilege.
        """
        try:
            await self._get("/cluster/nextid", f"check VMID {vmid}", str, vmid=vmid)
        except ParameterError as error:
            if "already exists" not in error.errors.get("vmid", ""):
                raise
            return True
        return False

    async def ct_config(self, vmid: Vmid) -> CtConfig:
        """GET …/config, with pending changes applied. CtNotFound; CtHidden if our account does not see the CT."""
        return await self._config_of(vmid, f"read the config of CT {vmid}")

    async def _config_of(self, vmid: Vmid, action: str) -> CtConfig:
        path = f"{self._ct(vmid)}/config"
        async with self._forbidden_explained(vmid, action):
            return ct_config(await self._get(path, action, dict[str, object]))

    async def idle_ct_config(self, vmid: Vmid, timeout: float | None = None) -> CtConfig:
        """As `ct_config`, after waiting for a create or a destroy of the CT by any client.

        A CT joins its pool at the end of its create and leaves it before the end of its destroy, so an account
        with rights on the pool does not see it meanwhile. CtHidden or CtLocked after `timeout` seconds (default:
        proxmox.task_timeout).
        """

        async def attempt() -> CtConfig:
            config = await self.ct_config(vmid)
            if config.lock in TRANSIENT_LOCKS:
                raise CtLocked(f"read the config of CT {vmid}", f"CT is locked ({config.lock})")
            return config

        return await self._retry_locked(attempt, timeout)

    async def create_ct(self, spec: CtSpec) -> Upid:
        """Create a CT (POST /nodes/{node}/lxc) and wait for the task.

        Tags are set later (pods/sandbox/ct_tags.py). With `spec.start` Proxmox then starts the CT in a second
        task, whose UPID it does not return: wait for the CT's init, and if it is late call `failed_start` with the
        returned UPID's `start_time`. CtExists if the VMID is in use. A failed task leaves no CT. After
        CreateUnanswered, and after a cancelled call, there may be one, or be one later.
        """
        return await self._creation.create(spec)

    async def start_ct(self, vmid: Vmid) -> None:
        """Start a CT. Idempotent. CtNotFound."""
        try:
            await self._task("POST", vmid, "/status/start", f"start CT {vmid}")
        except CtAlreadyRunning:
            return

    async def stop_ct(self, vmid: Vmid, confirm: Confirmation | None = None) -> None:
        """Stop a CT at once, by killing its processes. Idempotent: a stopped or missing CT is no error.

        `confirm` is awaited before every request; what it raises ends the call.
        """
        try:
            await self._task("POST", vmid, "/status/stop", f"stop CT {vmid}", confirm)
        except (CtNotRunning, CtNotFound):
            return

    async def destroy_ct(self, vmid: Vmid, confirm: Confirmation | None = None, *, force: bool = True) -> None:
        """Destroy a CT with its disks, and remove it from backup jobs, replication and HA. Idempotent.

        `confirm` as in `stop_ct`; `force` stops a running CT (slower than `stop_ct` first). Proxmox removes its
        firewall rules and ACLs, too.
        """
        try:
            # Without purge Proxmox refuses a CT that is an HA resource or has replication jobs.
            await self._task("DELETE", vmid, "", f"destroy CT {vmid}", confirm, force=force, purge=True)
        except CtNotFound:
            return

    async def replaced_by(self, vmid: Vmid) -> TaskEntry | None:
        """The last task that has destroyed a CT of this VMID, or restored a backup over it, since the last create.

        None if there is none in the node's task log. Waits for one that runs; DeadlineExceeded.
        """
        return await self._tasks.replacement(vmid, self._node)

    async def configure_ct(
        self, vmid: Vmid, lock_timeout: float | None = None, /, **changes: ParameterValue | None
    ) -> None:
        """Change options (PUT …/config); None removes one. CtLocked after `lock_timeout` seconds.

        On a running CT memory, swap, cpulimit, cpuunits, tags and description take effect at once; a new hostname
        is shown in Proxmox at once and set inside the CT at its next start.
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
            action=f"configure CT {vmid}",
            parameters=parameters,
            repeatable=True,
        )
        async with self._forbidden_explained(vmid, call.action):
            await self._retry_locked(
                lambda: self._transport.call(call, object),
                lock_timeout,
                before_repeat=lambda: self._check_lock(vmid, call.action),
            )

    async def protect_ct(self, vmid: Vmid, firewall: Firewall) -> None:
        """Set a new CT's firewall rules and enable its firewall (…/firewall/rules, …/firewall/options).

        Proxmox removes both with the CT.
        """
        path, action = f"{self._ct(vmid)}/firewall", f"set the firewall of CT {vmid}"
        parameters: dict[str, ParameterValue]
        for rule in reversed(firewall.rules):  # Proxmox inserts each new rule at the top
            parameters = {"type": rule.direction, "action": rule.action, "enable": 1, **rule.options}
            # Not repeatable: a second POST would insert the rule once more.
            call = Call(method="POST", path=f"{path}/rules", action=action, parameters=parameters)
            await self._transport.call(call, object)
        parameters = {**firewall.options, "enable": 1}
        call = Call(method="PUT", path=f"{path}/options", action=action, parameters=parameters, repeatable=True)
        await self._transport.call(call, object)

    async def failed_start(self, vmid: Vmid, since: int = 0) -> str | None:
        """Why the last start of a CT failed; None if it succeeded, is still running or does not exist.

        Considers starts at `since` (epoch seconds, the node's clock) or later: the VMID may have been another
        CT's.
        """
        action = f"start CT {vmid}"
        entry = await self._tasks.last(vmid, "vzstart", self._node, since)
        if entry is None:
            return None
        # The list of tasks shows RUNNING for some time after the end of this task: its worker is a child of the
        # create's worker, which has exited, so nobody reaps it. The task's own status is current.
        upid = parse_upid(entry.upid, action)
        status = await self._tasks.status(upid, action)
        if status.status is not TaskState.STOPPED or status.succeeded:
            return None
        return task_failure(status.exitstatus, await self._tasks.log_end(upid))

    async def create_runs(self, vmid: Vmid) -> bool:
        """Whether the last create of this VMID that our account has begun on this node is still running."""
        action = f"create CT {vmid}"
        entry = await self._tasks.last(vmid, "vzcreate", self._node, since=0)
        if entry is None:
            return False
        return (await self._tasks.status(parse_upid(entry.upid, action), action)).status is not TaskState.STOPPED

    # -- templates -------------------------------------------------------------------------------------------

    async def find_template(self, name: str) -> str | None:
        """The volume id of a CT template on proxmox.template_storage; None if there is none of that name."""
        storage = self._config.template_storage
        path = f"/nodes/{self._node}/storage/{storage}/content"
        items = await self._get(path, f"list the templates of {storage}", list[StorageItem], content="vztmpl")
        volid = f"{storage}:vztmpl/{name}"
        return volid if any(item.volid == volid for item in items) else None

    async def ensure_template(self, content: bytes | Path, name: str) -> str:
        """Upload a CT template to proxmox.template_storage unless it exists there; returns its volume id.

        The name must identify the content, so it should contain a hash. Templates of other names are kept: another
        node that shares the storage may use them.
        """
        if found := await self.find_template(name):
            return found
        data = content if isinstance(content, bytes) else await asyncio.to_thread(content.read_bytes)
        storage = self._config.template_storage
        await upload_template(self._transport, self._tasks, self._node, storage, name, data)
        return f"{storage}:vztmpl/{name}"

    async def upload_image(self, file: Path, storage: str) -> str:
        """Upload a CT template to a storage with content `vztmpl`; its volume ID. Replaces one of that name."""
        tasks = Tasks(self._transport, FILE_TIMEOUT)
        await upload_template(self._transport, tasks, self._node, storage, file.name, file)
        return f"{storage}:vztmpl/{file.name}"

    def image_templates(self, timeout: float) -> ImageTemplates:
        """OCI images as templates on `image_storage`; `timeout` is for one pull, in seconds."""
        return ImageTemplates(self._transport, Tasks(self._transport, timeout), self._node, self._image_storage)

    async def ensure_sandbox_template(self) -> tuple[str, SandboxTemplate]:
        """Build the sandbox template from this node's programs and upload it unless the storage has it.

        Returns its volume id and the template. FailedPrecondition names a package that is not installed.
        """
        template = await asyncio.to_thread(sandbox_template)
        found = await self.find_template(template.name)
        if found is None:
            found = await self.ensure_template(await asyncio.to_thread(template.archive), template.name)
        return found, template

    # -- calls -----------------------------------------------------------------------------------------------

    def _ct(self, vmid: Vmid) -> str:
        return f"/nodes/{self._node}/lxc/{vmid}"

    async def _get(self, path: str, action: str, into: type[T], /, **parameters: ParameterValue) -> T:
        call = Call(method="GET", path=path, action=action, parameters=parameters)
        return await self._transport.call(call, into)

    async def _task(
        self,
        method: str,
        vmid: Vmid,
        path: str,
        action: str,
        confirm: Confirmation | None = None,
        **parameters: ParameterValue,
    ) -> None:
        """Make a call on a CT, at `path` below it, and wait for its task. All of these are idempotent.

        `confirm` as in `stop_ct`.
        """
        path = f"{self._ct(vmid)}{path}"
        # The transport would repeat it without asking.
        call = Call(method=method, path=path, action=action, parameters=parameters, repeatable=confirm is None)

        async def attempt() -> None:
            async with self._forbidden_explained(vmid, action):
                try:
                    upid = await self._transport.call(call, str)
                except ConnectionLost:
                    if confirm is None:
                        raise
                    await confirm()
                    upid = await self._transport.call(call, str)
                await self._tasks.wait(parse_upid(upid, action), action)

        async def before_repeat() -> None:
            await self._check_lock(vmid, action)
            if confirm is not None:  # who held the lock may have put another CT into its place
                await confirm()

        if confirm is not None:
            await confirm()
        # Each attempt is a task in Proxmox's log: after the first, the config is read until the lock is gone.
        await self._retry_locked(attempt, before_repeat=before_repeat)

    async def _check_lock(self, vmid: Vmid, action: str) -> None:
        """CtLocked while there is a lock in the CT's config; CtNotFound if there is no such CT."""
        lock = (await self._config_of(vmid, action)).lock
        if lock:
            raise CtLocked(action, f"CT is locked ({lock})")

    @asynccontextmanager
    async def _forbidden_explained(self, vmid: Vmid, action: str) -> AsyncIterator[None]:
        """Replace a 403 for a CT: CtNotFound if it does not exist, CtHidden if our account does not see it.

        Proxmox checks privileges before it looks for the CT, and a CT that does not exist is in no pool. An
        account that may see no CT at all keeps the 403.
        """
        try:
            yield
        except Forbidden as refused:
            if not await self.vmid_taken(vmid):
                raise CtNotFound(action, f"CT {vmid} does not exist") from refused
            if any(guest.vmid == vmid for guest in await self.guests()):
                raise  # the account sees the CT and lacks a privilege on it
            if "VM.Audit" not in await self.permissions(privileges.pods_path(self._config)):
                raise
            raise CtHidden(
                f"Proxmox: {action}: CT {vmid} exists, but our account does not see it: it is being created, "
                f"or is not in the pool {self._config.pool!r} (proxmox.pool)"
            ) from refused

    async def _retry_locked(
        self,
        attempt: Callable[[], Awaitable[T]],
        timeout: float | None = None,
        before_repeat: Callable[[], Awaitable[None]] | None = None,
    ) -> T:
        """Retry on CtLocked and CtHidden for `timeout` seconds (default: proxmox.task_timeout), or
        HELD_LOCK_TIMEOUT if that is shorter for the lock.

        `before_repeat` precedes every attempt but the first, and replaces it if it raises the same errors.
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


def _lock_timeout(refused: CtLocked | CtHidden, timeout: float) -> float:
    """Seconds for which to retry after this refusal."""
    held = isinstance(refused, CtLocked) and refused.lock not in TRANSIENT_LOCKS
    return min(timeout, HELD_LOCK_TIMEOUT) if held else timeout
