# SPDX-License-Identifier: AGPL-3.0-or-later
"""POST …/storage/{storage}/oci-registry-pull and GET …/query-oci-repo-tags: skopeo asks registries."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fakepve import PveError, TaskError
from fakepve import storage as model

from pvecri_embedded.api import tasks
from pvecri_embedded.api.base import Base
from pvecri_embedded.api.storage import normalise_file_name


class RegistryPullApi(Base):
    """Registries are skopeo's own affair: the system's registries.conf and credentials, as on Proxmox.

    `registries_conf` is another file in place of the system's, by the variable that newer versions of skopeo
    read by themselves.
    """

    registries_conf = os.environ.get("CONTAINERS_REGISTRIES_CONF", "")

    def _routes_registry_pull(self) -> list[tuple[str, str, Any]]:
        return [
            ("POST", "/nodes/{node}/storage/{storage}/oci-registry-pull", self._registry_pull),
            ("GET", "/nodes/{node}/query-oci-repo-tags", self._repository_tags),
        ]

    async def _repository_tags(self, v: dict[str, Any], user: str) -> list[str]:
        """The tags of a repository; of one that is not there, the failure of skopeo."""
        if shutil.which("skopeo") is None:
            raise PveError(500, "Install 'skopeo' to list tags from OCI registries.")
        words = ["list-tags", f"docker://{v['reference']}"]
        process = await asyncio.create_subprocess_exec(
            "skopeo", *_registries(self.registries_conf), *words,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        output, _ = await process.communicate()
        if process.returncode:
            raise PveError(500, f"command 'skopeo {' '.join(words)}' failed: exit code {process.returncode}")
        tags: list[str] = json.loads(output)["Tags"]
        return tags

    async def _registry_pull(self, v: dict[str, Any], user: str) -> str:
        reference = str(v["reference"])
        target = self._pull_target(v)
        if target.exists():
            raise PveError(500, f"refusing to override existing file '{target.name}'")

        async def body() -> None:
            await _fetch(reference, target, self.registries_conf)

        return str(await self.task(v["node"], "ociregistrypull", target.name, user, body))

    def _pull_target(self, v: dict[str, Any]) -> Path:
        """Where the template will lie; refused where the storage holds none, in Proxmox's order."""
        if shutil.which("skopeo") is None:
            raise PveError(500, "Install 'skopeo' to pull OCI images from registries.")
        name = v["storage"]
        store = self._active_store(name, v["node"])
        if store.get("type") not in {"dir", "btrfs"}:
            kind = store.get("type")
            raise PveError(500, f"can't upload to storage type '{kind}', not a file based storage!")
        if "vztmpl" not in model.split_list(store.get("content")):
            raise PveError(500, f"storage '{name}' is not configured for content-type 'vztmpl'")
        return self.disks[name].volume_path(f"vztmpl/{file_name(v['reference'], v.get('filename'))}")


def file_name(reference: str, wanted: str | None) -> str:
    """The template's name: as wanted, else the last part of the repository and the tag."""
    return f"{normalise_file_name(wanted or reference)}.tar"


def _registries(conf: str) -> list[str]:
    """The option that names another registries.conf than the system's."""
    return [f"--registries-conf={conf}"] if conf else []


async def _fetch(reference: str, target: Path, registries_conf: str) -> None:
    """Have skopeo write the archive beside `target` and give it its name. Nothing is left of a failure."""
    # Named as by Proxmox (PVE::API2::Storage::Status).
    temporary = target.with_name(f"{target.name}.tmp.{os.getpid()}")
    words = ["copy", f"docker://{reference}", f"oci-archive:{temporary}"]
    try:
        status = await _logged(["skopeo", *_registries(registries_conf), *words])
        if status:
            raise TaskError(f"command 'skopeo {' '.join(words)}' failed: exit code {status}")
        temporary.rename(target)
    finally:
        temporary.unlink(missing_ok=True)


async def _logged(command: Sequence[str]) -> int:
    """Run a program to its end, its output in the task's log; it ends with the task."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    try:
        async for line in process.stdout:
            tasks.log(line.decode(errors="replace").rstrip("\n"))
        return await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
