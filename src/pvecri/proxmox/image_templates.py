# SPDX-License-Identifier: Apache-2.0
"""OCI images as CT templates, fetched by Proxmox itself (`oci-registry-pull`, Proxmox VE 9.1 and later)."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

from pvecri.errors import AlreadyExists, CommandError, FailedPrecondition
from pvecri.proxmox.answers import StorageItem, TaskEntry, VolumeInfo
from pvecri.proxmox.errors import ProxmoxError, ProxmoxTaskError
from pvecri.proxmox.tasks import Tasks, parse_upid
from pvecri.proxmox.transport import Call, Transport
from pvecri.proxmox.upid import Upid

PULL_TASK: Final = "ociregistrypull"
_ENDING: Final = ".tar"
_SKOPEO_FAILED: Final = re.compile(r"\bskopeo failed: exit code (\d+)")


class ImageTemplates:
    """The templates on one storage of a node. A template's `file` is its name there and ends in `.tar`.

    All calls raise what calls of ProxmoxApi raise.
    """

    def __init__(self, transport: Transport, tasks: Tasks, node: str, storage: str) -> None:
        self.storage = storage
        self._transport = transport
        self._tasks = tasks
        self._node = node
        self._path = f"/nodes/{node}/storage/{storage}"

    async def find(self, file: str) -> Path | None:
        """The path of a template on this node; None if there is none of that name (GET …/content/{volume})."""
        if not await self._exists(file):
            return None
        call = Call(method="GET", path=self._content(file), action=f"get the path of template {file}")
        try:
            return Path((await self._transport.call(call, VolumeInfo)).path)
        except ProxmoxError:
            # Proxmox has no message of its own for a file that has been removed since it was listed.
            if await self._exists(file):
                raise
            return None

    async def pull(self, reference: str, file: str) -> None:
        """Have Proxmox pull an image, and wait for it (POST …/oci-registry-pull).

        `reference` has a tag and no digest. Registries, mirrors and credentials are those of the node's own
        skopeo. AlreadyExists if the file exists, FailedPrecondition if Proxmox is too old, CommandError with the
        output of skopeo if that fails; no file is left then. A cancelled call leaves the task
        running; `remove` stops it.
        """
        action = f"pull {reference} to storage {self.storage}"
        call = Call(
            method="POST",
            path=f"{self._path}/oci-registry-pull",
            action=action,
            # Proxmox appends `.tar` to the file name itself.
            parameters={"reference": reference, "filename": file.removesuffix(_ENDING)},
        )
        try:
            upid = parse_upid(await self._transport.call(call, str), action)
            await self._tasks.wait(upid, action)
        except ProxmoxTaskError as error:
            if failed := _SKOPEO_FAILED.search(error.message):
                raise CommandError("skopeo", int(failed[1]), error.message) from error
            raise
        except ProxmoxError as error:
            # What pveproxy answers for a path that this version does not have.
            if error.http_status == 501:
                raise FailedPrecondition(
                    f"Proxmox: {action}: not implemented: images.template_storage needs Proxmox VE 9.1 or later"
                ) from error
            if "refusing to override existing file" in error.message:
                raise AlreadyExists(f"Proxmox: {action}: {error.message}") from error
            raise

    async def remove(self, file: str) -> None:
        """Remove a template, and stop the tasks that pull it. Idempotent."""
        for upid in await self._pulls_of(file):
            call = Call(method="DELETE", path=upid.path, action=f"stop {upid}", repeatable=True)
            await self._transport.call(call, object)
            with suppress(ProxmoxError):  # a stopped task has failed
                await self._tasks.wait(upid, call.action)
        if await self._exists(file):
            action = f"remove template {file} of storage {self.storage}"
            call = Call(method="DELETE", path=self._content(file), action=action, repeatable=True)
            upid_or_none = await self._transport.call(call, object)  # null if no task was needed
            if upid_or_none is not None:
                await self._tasks.wait(parse_upid(str(upid_or_none), action), action)

    async def _exists(self, file: str) -> bool:
        action = f"list the templates of {self.storage}"
        call = Call(method="GET", path=f"{self._path}/content", action=action, parameters={"content": "vztmpl"})
        items = await self._transport.call(call, list[StorageItem])
        return any(item.volid == self._volid(file) for item in items)

    async def _pulls_of(self, file: str) -> list[Upid]:
        """The running tasks that pull this template."""
        call = Call(
            method="GET",
            path=f"/nodes/{self._node}/tasks",
            action="list the running pulls",
            # By default the list has ended tasks only (`archive`).
            parameters={"source": "active", "typefilter": PULL_TASK},
        )
        entries = await self._transport.call(call, list[TaskEntry])
        running = (each for each in entries if each.type == PULL_TASK and each.id == file)
        return [parse_upid(each.upid, call.action) for each in running]

    def _volid(self, file: str) -> str:
        return f"{self.storage}:vztmpl/{file}"

    def _content(self, file: str) -> str:
        return f"{self._path}/content/{quote(self._volid(file), safe='')}"
