# SPDX-License-Identifier: AGPL-3.0-or-later
"""/nodes/{node}/storage: files and volumes on disk under fakepve's storage rules."""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from aiohttp import web
from fakepve import PveError, TaskError
from fakepve import storage as model
from fakepve.server import USER

from pvecri_embedded.api import tasks
from pvecri_embedded.api.base import Base, parameter_error
from pvecri_embedded.storage.volumes import Storage, VolumeError

CONTENT = "iso,vztmpl,backup,rootdir,images,snippets,import"
_CHECKSUMS = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512")
_UPLOAD_NAMES = {
    "iso": re.compile(r".+\.(iso|img)$"),
    "vztmpl": re.compile(r".+\.tar(\.(gz|xz|zst|bz2))?$"),
    "import": re.compile(r".+\.(ova|ovf|qcow2|raw|vmdk)$"),
}


class StorageFilesApi(Base):
    """Overrides what fakepve remembers of files with what lies on disk."""

    def add_storage(self, name: str, kind: str, content: str) -> None:
        """Serve a storage of this type from a directory of the node's own."""
        disk = Storage(name, kind, self.layout.storage(name))
        disk.make_directories()
        self.disks = {**self.disks, name: disk}
        options: dict[str, Any] = {"type": kind, "active": 1, "content": content, "files": set()}
        if kind == "lvmthin":
            options |= {"vgname": "pve", "thinpool": "data"}
        else:
            options["path"] = str(disk.path)
        self.storages[name] = options

    # -- is it there? ----------------------------------------------------------------------------------------

    def activate_storage(self, name: str) -> None:
        """Raise Proxmox's 500 for a storage that is not there, disabled, or not mounted (PVE::Storage)."""
        self._active_store(name, self.node)

    def _active_store(self, name: str, node: str) -> dict[str, Any]:
        store: dict[str, Any] = super()._active_store(name, node)
        mount_point = _mount_point(store)
        if mount_point is not None and not mount_point.is_mount():
            raise PveError(
                500,
                f"unable to activate storage '{name}' - directory is expected to be a mount point but is not "
                f"mounted: '{mount_point}'",
            )
        return store

    def _storage_for(self, sid: str, user: str | None = None, vmid: int | None = None) -> dict[str, Any]:
        self._check_enabled(sid, self.node)
        super()._storage_for(sid, user, vmid)
        return self._active_store(sid, self.node)

    def _status_item(self, name: str, node: str, formats: bool = False) -> dict[str, Any]:
        item: dict[str, Any] = super()._status_item(name, node, formats)
        mount_point = _mount_point(self.storages[name])
        if item["active"] and mount_point is not None and not mount_point.is_mount():
            item |= dict.fromkeys(("active", "total", "used", "avail"), 0)
        return item

    # -- what is on it ---------------------------------------------------------------------------------------

    def _volumes(self, name: str) -> dict[str, dict[str, Any]]:
        if name not in self.disks:
            volumes: dict[str, dict[str, Any]] = super()._volumes(name)
            return volumes
        return {volume.name: volume.as_content() for volume in self.disks[name].volumes()}

    def _space(self, store: dict[str, Any]) -> tuple[int, int, int]:
        for name, candidate in self.storages.items():
            if candidate is store and name in self.disks:
                return self.disks[name].space()
        space: tuple[int, int, int] = super()._space(store)
        return space

    def _volume_path(self, name: str, volname: str, vtype: str) -> str:
        if name in self.disks:
            return str(self.disks[name].volume_path(volname))
        return str(super()._volume_path(name, volname, vtype))

    def _parse_volname(self, store: dict[str, Any], volname: str) -> tuple[str, int | None, str]:
        # fakepve does not know templates that are plain tar archives.
        if re.fullmatch(r"vztmpl/[^/]+\.tar", volname) and store.get("type") in {"dir", "btrfs"}:
            return "vztmpl", None, "raw"
        parsed: tuple[str, int | None, str] = super()._parse_volname(store, volname)
        return parsed

    async def _content_create(self, v: dict[str, Any], user: str) -> str:
        volid = str(await super()._content_create(v, user))
        storage, _, name = volid.partition(":")
        volume = self.storages[storage]["volumes"].pop(name)
        try:
            path = self.disks[storage].volume_path(name)
            await asyncio.to_thread(_make_empty, path, int(volume["size"]))
        except (VolumeError, OSError) as error:
            raise PveError(500, str(error)) from error
        return volid

    async def _content_delete(self, v: dict[str, Any], user: str) -> str | None:
        sid, volname, volid, _store, vtype, owner, _format = self._volume_target(v)
        if vtype == "backup" and owner:
            self.require(user, f"/storage/{sid}", "Datastore.AllocateSpace")
            self.require(user, f"/vms/{owner}", "VM.Backup")
        else:
            self.require(user, f"/storage/{sid}", "Datastore.Allocate")

        async def body() -> str:
            self.activate_storage(sid)
            for line in await asyncio.to_thread(self.disks[sid].free, volname):
                tasks.log(line)
            return f"Removed volume '{volid}'"

        identity = f"{owner}@{sid}" if owner is not None else sid
        upid = str(await self.task(v["node"], "imgdel", identity, user, body))
        if not v.get("delay") or not await self.task_ended(upid, float(v["delay"])):
            return upid
        exitstatus = str(self.tasks[upid]["exitstatus"])
        if exitstatus != "OK":
            raise PveError(500, exitstatus)
        return None

    async def _upload(self, request: web.Request) -> web.Response:
        """POST /nodes/{node}/storage/{storage}/upload: the file is on the storage when the task ends."""
        name, user = request.match_info["storage"], request[USER]
        self.require(user, f"/storage/{name}", "Datastore.AllocateTemplate")
        fields = await _multipart(request)
        target = self._upload_target(name, request.match_info["node"], fields)
        # Where pveproxy has put the body by now.
        source = f"/var/tmp/pveupload-{secrets.token_hex(16)}"
        data: bytes = fields["data"]

        async def body() -> str:
            tasks.log(f"starting file import from: {source}")
            _check_sum(data, fields)
            tasks.log(f"target node: {self.node}")
            tasks.log(f"target file: {target}")
            tasks.log(f"file size is: {len(data)}")
            tasks.log(f"command: cp -- {source} {target}")
            await asyncio.to_thread(_copy_to, target, data)
            return "finished file import successfully"

        return web.json_response({"data": await self.task(self.node, "imgcopy", "", user, body)})

    def _upload_target(self, name: str, node: str, fields: dict[str, Any]) -> Path:
        """Where the file will lie, after Proxmox's checks, in its order."""
        content, filename = fields.get("content"), normalise_file_name(str(fields.get("filename", "")))
        _check_upload_parameters(fields)
        store = self._check_enabled(name, node)
        if store.get("type") not in {"dir", "btrfs"}:
            raise PveError(500, f"can't upload to storage type '{store.get('type')}'")
        if not _UPLOAD_NAMES[str(content)].fullmatch(filename):
            raise parameter_error("filename", "wrong file extension")
        if content not in model.split_list(store.get("content")):
            raise PveError(500, f"storage '{name}' does not support '{content}' content")
        self._active_store(name, node)
        return self.disks[name].volume_path(f"{content}/{filename}")

    def _item(self, name: str, volname: str, vol: dict[str, Any]) -> dict[str, Any]:
        item: dict[str, Any] = super()._item(name, volname, vol)
        return {**item, "parent": None} if vol.get("vmid") is not None else item

    def _storage_resource(self, node: str, name: str) -> dict[str, Any] | None:
        item: dict[str, Any] | None = super()._storage_resource(node, name)
        if item is not None:
            item["maxdisk"], item["disk"], _ = self._space(self.storages[name])
        return item

    def volume_exists(self, volid: str) -> bool:
        storage, _, name = volid.partition(":")
        return storage in self.disks and self.disks[storage].volume_path(name).exists()

    def store_file(self, storage: str, name: str, size: int, content: str = "iso") -> None:
        # What download-url would do: this node fetches nothing.
        raise TaskError("download failed: the embedded node does not download")


async def _multipart(request: web.Request) -> dict[str, Any]:
    """The fields of an upload; the file's bytes as ``data`` and its name as ``filename``."""
    boundary = re.search(r'boundary="?([^";]+)', request.headers.get("Content-Type", ""))
    if boundary is None:
        raise PveError(400, "bad upload request")
    fields: dict[str, Any] = {}
    # The body is in memory already: fakepve reads it before it asks for an answer.
    for part in (b"\r\n" + await request.read()).split(b"\r\n--" + boundary.group(1).encode())[1:-1]:
        head, _, data = part.partition(b"\r\n\r\n")
        names = dict(re.findall(r'\b(name|filename)="([^"]*)"', head.decode(errors="replace")))
        if "filename" in names:
            fields |= {"filename": names["filename"], "data": data}
        elif "name" in names:
            fields[names["name"]] = data.decode(errors="replace")
    if "data" not in fields:
        raise PveError(400, "bad upload request")
    return fields


def _make_empty(path: Path, size: int) -> None:
    """An empty volume: a directory when it is a ``subvol``, else a sparse image."""
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".subvol":
        path.mkdir()
        return
    with path.open("xb") as file:
        file.truncate(size)


def normalise_file_name(name: str) -> str:
    """What Proxmox makes of a file's name (PVE::Storage::normalize_content_filename)."""
    return re.sub(r"[^\w.-]", "_", re.split(r"[/\\]", name.removesuffix("\n"))[-1], flags=re.ASCII)


def _mount_point(store: dict[str, Any]) -> Path | None:
    """Where a filesystem must be mounted for a `dir` storage with the option ``is_mountpoint``."""
    value = str(store.get("is_mountpoint") or "no")
    if store.get("type") != "dir" or value.lower() in {"no", "0", "off", "false"}:
        return None
    return Path(store["path"] if value.lower() in {"yes", "1", "on", "true"} else value)


def _check_upload_parameters(fields: dict[str, Any]) -> None:
    """Raise Proxmox's 400 for a field of an upload that the schema does not allow."""
    content, algorithm = fields.get("content"), fields.get("checksum-algorithm")
    if content not in _UPLOAD_NAMES:
        raise parameter_error("content", _not_in(content, _UPLOAD_NAMES))
    if algorithm is not None and algorithm not in _CHECKSUMS:
        raise parameter_error("checksum-algorithm", _not_in(algorithm, _CHECKSUMS))
    for name, other in (("checksum", "checksum-algorithm"), ("checksum-algorithm", "checksum")):
        if name in fields and other not in fields:
            raise parameter_error(other, f"missing property - '{name}' requires this property")


def _not_in(value: object, known: Iterable[str]) -> str:
    return f"value '{value}' does not have a value in the enumeration '{', '.join(known)}'"


def _check_sum(data: bytes, fields: dict[str, Any]) -> None:
    """Compare the checksum that came with an upload, if one did. Raises TaskError."""
    if "checksum-algorithm" not in fields:
        return
    found, expected = hashlib.new(fields["checksum-algorithm"], data).hexdigest(), str(fields["checksum"])
    if found != expected.lower():
        tasks.log("calculating checksum...")
        raise TaskError(f"checksum mismatch: got '{found}' != expect '{expected}'")
    tasks.log("calculating checksum...OK, checksum verified")


def _copy_to(target: Path, data: bytes) -> None:
    """What ``cp`` does. Raises TaskError, and leaves no part of the file then."""
    try:
        target.write_bytes(data)
    except OSError as error:
        target.unlink(missing_ok=True)
        raise TaskError(f"import failed: cp: error writing '{target}': {error.strerror}") from error
