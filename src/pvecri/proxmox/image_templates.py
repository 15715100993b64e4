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
_SKOPEO_FAILED: Final = re.compile(r"command 'skopeo .*' failed: exit code (\d+)", re.DOTALL)


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
        """Where a template lies on this node; None when there is none of that name (GET …/content/{volume})."""
        if not await self._exists(file):
            return None
        call = Call(method="GET", path=self._content(file), doing=f"ask where template {file} is")
        return Path((await self._transport.call(call, VolumeInfo)).path)

    async def pull(self, reference: str, file: str) -> None:
        """Have Proxmox fetch an image and wait for it (POST …/oci-registry-pull).

        `reference` needs a tag and can have no digest. Registries, mirrors and credentials are those of the node's
        own skopeo. Raises AlreadyExists when there is such a file, FailedPrecondition when Proxmox is too old, and
        CommandError when skopeo fails; `output` is what it said. No file is there then. A cancelled call leaves
        Proxmox at work: `remove` ends that.
        """
        doing = f"pull {reference} to storage {self.storage}"
        call = Call(
            method="POST",
            path=f"{self._path}/oci-registry-pull",
            doing=doing,
            parameters={"reference": reference, "filename": file.removesuffix(_ENDING)},
        )
        try:
            upid = parse_upid(await self._transport.call(call, str), doing)
            await self._tasks.wait(upid, doing)
        except ProxmoxTaskError as error:
            if failed := _SKOPEO_FAILED.search(error.words):
                raise CommandError("skopeo", int(failed[1]), error.words) from error
            raise
        except ProxmoxError as error:
            if error.http_status == 501:
                raise FailedPrecondition(
                    f"Proxmox: {doing}: this version cannot: images.template_storage needs Proxmox VE 9.1 or later"
                ) from error
            if "refusing to override existing file" in error.words:
                raise AlreadyExists(f"Proxmox: {doing}: {error.words}") from error
            raise

    async def remove(self, file: str) -> None:
        """Remove a template, and end what still fetches it. Idempotent."""
        for upid in await self._pulls_of(file):
            call = Call(method="DELETE", path=upid.path, doing=f"stop {upid}", repeatable=True)
            await self._transport.call(call, object)
            with suppress(ProxmoxError):  # it was stopped, so it says that it failed
                await self._tasks.wait(upid, call.doing)
        if await self._exists(file):
            doing = f"remove template {file} of storage {self.storage}"
            call = Call(method="DELETE", path=self._content(file), doing=doing, repeatable=True)
            answer = await self._transport.call(call, object)  # null when it was done at once
            if answer is not None:
                await self._tasks.wait(parse_upid(str(answer), doing), doing)

    async def _exists(self, file: str) -> bool:
        doing = f"list the templates of {self.storage}"
        call = Call(method="GET", path=f"{self._path}/content", doing=doing, parameters={"content": "vztmpl"})
        items = await self._transport.call(call, list[StorageItem])
        return any(item.volid == self._volid(file) for item in items)

    async def _pulls_of(self, file: str) -> list[Upid]:
        """The tasks that fetch this template now."""
        call = Call(
            method="GET",
            path=f"/nodes/{self._node}/tasks",
            doing="list the pulls under way",
            parameters={"source": "active", "typefilter": PULL_TASK},
        )
        entries = await self._transport.call(call, list[TaskEntry])
        running = (each for each in entries if each.type == PULL_TASK and each.id == file)
        return [parse_upid(each.upid, call.doing) for each in running]

    def _volid(self, file: str) -> str:
        return f"{self.storage}:vztmpl/{file}"

    def _content(self, file: str) -> str:
        return f"{self._path}/content/{quote(self._volid(file), safe='')}"
