# SPDX-License-Identifier: Apache-2.0
"""The request that creates a CT: the only one that is not idempotent (decision 0021)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from pvecri.errors import PvecriError
from pvecri.model import Vmid
from pvecri.proxmox.answers import CtConfig
from pvecri.proxmox.ctspec import CtSpec, create_parameters
from pvecri.proxmox.errors import (
    ConnectionLost,
    CreateUnanswered,
    CtExists,
    CtHidden,
    CtNotFound,
    ProxmoxError,
)
from pvecri.proxmox.tasks import Tasks, parse_upid
from pvecri.proxmox.transport import Call, Transport
from pvecri.proxmox.upid import Upid

CREATE_LOCK = "create"
"""The lock of a CT that is being created; until the end of the create its config has nothing else."""

ReadConfig = Callable[[Vmid], Awaitable[CtConfig]]


class Creation:
    """Creates the CTs of one node."""

    def __init__(
        self,
        transport: Transport,
        tasks: Tasks,
        node: str,
        ct_config: ReadConfig,
        idle_ct_config: ReadConfig,
    ) -> None:
        """The last two are those of ProxmoxApi."""
        self._transport = transport
        self._tasks = tasks
        self._node = node
        self._ct_config = ct_config
        self._idle_ct_config = idle_ct_config

    async def create(self, spec: CtSpec) -> Upid:
        """See ProxmoxApi.create_ct."""
        action = f"create CT {spec.vmid}"
        call = Call(
            method="POST",
            path=f"/nodes/{self._node}/lxc",
            action=action,
            parameters=create_parameters(spec),
        )
        try:
            upid = parse_upid(await self._transport.call(call, str), action)
        except ConnectionLost:
            upid = await self._send_again(call, spec)
        await self._tasks.wait(upid, action)
        return upid

    async def _send_again(self, call: Call, spec: CtSpec) -> Upid:
        """After a create without a response: find its task, or send it again if there is no CT.

        Of two such requests Proxmox refuses the later one, so there is one CT at most. CtExists if the VMID is
        another guest's; for any other failure CreateUnanswered.
        """
        try:
            created = await self._task_of_create(call.action, spec)
            if created is not None:
                return created
            try:
                return parse_upid(await self._transport.call(call, str), call.action)
            except CtExists:  # most likely of the first request, which Proxmox has processed meanwhile
                created = await self._task_of_create(call.action, spec)
                if created is None:
                    raise
                return created
        except CtExists:
            raise
        except PvecriError as error:
            raise CreateUnanswered(f"{error} (after a request without a response)") from error

    async def _task_of_create(self, action: str, spec: CtSpec) -> Upid | None:
        """The task that creates or has created the CT; None if there is no CT. CtExists if it is another's.

        A CT with our VMID and our description, which is unique, is ours.
        """
        try:
            existing = await self._config_with_description(spec.vmid)
        except CtNotFound:
            return None
        # Proxmox ends the description with a line feed of its own.
        if existing.description.strip() != spec.description.strip():
            raise CtExists(action, f"the response was lost, and VMID {spec.vmid} belongs to another CT now")
        entry = await self._tasks.last(spec.vmid, "vzcreate", self._node, since=0)
        if entry is None:
            raise ProxmoxError(action, "the response was lost, and its task cannot be found")
        return parse_upid(entry.upid, action)

    async def _config_with_description(self, vmid: Vmid) -> CtConfig:
        """The CT's config once it has a description; during the create it may have none, or be hidden."""
        try:
            config = await self._ct_config(vmid)
        except CtHidden:
            return await self._idle_ct_config(vmid)
        if config.lock == CREATE_LOCK and not config.description:
            return await self._idle_ct_config(vmid)
        return config
