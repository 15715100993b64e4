# SPDX-License-Identifier: AGPL-3.0-or-later
"""POST /nodes/{node}/lxc: a CT from a template."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fakepve import PveError, TaskError
from fakepve import lxc as model

from pvecri_embedded.api import tasks
from pvecri_embedded.api.base import Base, Ct, message_of
from pvecri_embedded.api.config import check_patterns
from pvecri_embedded.lxc.config_file import ID_COUNT, ID_SHIFT, is_unprivileged
from pvecri_embedded.lxc.monitor import Mount
from pvecri_embedded.lxc.mounts import in_namespace_of_its_own, unmount
from pvecri_embedded.storage.template import TemplateError, Unpacked
from pvecri_embedded.storage.volumes import GIB, VolumeError, format_size

DEFAULT_ROOTFS_GIB = 4
LOCK_TIMEOUT_S = 5.0
"""How long a create waits for the config's lock: what else waits for one waits 10 s."""
_PERL_PLACE = "/usr/share/perl5/PVE/Storage.pm line 651"
_UNLOCKED_SHARE = 0.2
"""How much of a create's time is left when Proxmox has written the new CT's config."""
_MOUNT_POINT = re.compile(r"^(rootfs|mp\d+)$")
_UNTAR = (
    "tar xpf - {compression}--totals --one-file-system -p --sparse --numeric-owner --acls --xattrs "
    "'--xattrs-include=user.*' '--xattrs-include=security.capability' '--warning=no-file-ignored' "
    "'--warning=no-xattr-write' -C {root} --skip-old-files --anchored --exclude './dev/*'"
)


def id_shift(config: Mapping[str, Any]) -> int:
    """The host's uid and gid of the CT's root."""
    return ID_SHIFT if is_unprivileged(config) else 0


def _host_managed(options: Mapping[str, Any]) -> dict[str, str]:
    """The nics of a CT from an image, whose addresses Proxmox sets from outside."""
    nics = {key: value for key, value in options.items() if re.fullmatch(r"net\d+", key)}
    return {key: model.normalise(key, f"{value},host-managed=1") for key, value in nics.items()}


class CreateApi(Base):
    """Overrides fakepve's create: the volumes, the root directory and the config file are real."""

    async def _lxc_create(self, user: str, v: dict[str, Any]) -> str:
        vmid, pool = int(v["vmid"]), v.get("pool")
        self.need_quorum()
        check_patterns(v)
        unprivileged = int(v.get("unprivileged", 1))
        self._check_create_permissions(user, vmid, v, unprivileged)
        options, mount_points = self._split_options(v)
        self._check_mount_points(user, vmid, mount_points)
        ct = Ct(vmid, node=self.node, defaults=False, config={"lock": "create"})
        await self.reserve(ct)

        async def body() -> None:
            await self._create_steps(ct, v["ostemplate"], {**options, "unprivileged": unprivileged}, mount_points)
            if pool:
                self._pool_join(pool, vmid)

        async def start() -> None:
            # A task of its own, whose UPID no answer contains.
            await self._ct_task(ct, "vzstart", user, lambda: self._start_steps(ct, user))

        upid = str(await self._ct_task(ct, "vzcreate", user, body, after=start if v.get("start") else None))
        self._running[upid].add_done_callback(lambda _: self._forget_unmade(ct))
        return upid

    async def reserve(self, ct: Ct) -> None:
        """Write the first config of a CT (create_and_lock_config): its id is taken from here on."""
        try:
            await self.acquire(ct, "reserve", wait=LOCK_TIMEOUT_S)
        except TaskError as error:
            raise PveError(500, f"unable to create CT {ct.vmid} - {error}") from error
        try:
            # Another request may have been faster while this one waited.
            self._check_vmid_unused(ct.vmid)
        except PveError as error:
            raise PveError(500, f"unable to create CT {ct.vmid} - {error.message}") from error
        else:
            self.cts.append(ct)
            self.save(ct)
        finally:
            self.release(ct, "reserve")

    def _forget_unmade(self, ct: Ct) -> None:
        """A task that failed before its work has reserved the id for nothing."""
        if ct in self.cts and ct.config == {"lock": "create"}:
            self._remove_files(ct, {})
            self._drop(ct)

    def _check_create_permissions(self, user: str, vmid: int, v: Mapping[str, Any], unprivileged: int) -> None:
        pool = v.get("pool")
        if not unprivileged:
            self.require(user, "/", "Sys.Modify")
        if v.get("ha-managed"):
            self.require(user, "/", "Sys.Console")
        self._check_vmid_unused(vmid)
        if pool and pool not in self.pools:
            raise PveError(403, f"Permission check failed (pool '{pool}' does not exist)")
        # `start` is not checked: the worker starts the CT by itself, as root.
        paths = [f"/vms/{vmid}", *([f"/pool/{pool}"] if pool else [])]
        if not any(self.allowed(user, path, "VM.Allocate") for path in paths):
            raise PveError(403, "Permission check failed")
        options = {key: value for key, value in v.items() if key not in model.CREATE_ONLY}
        self._check_modify_perm(user, vmid, pool, None, options, [], unprivileged)
        if v["ostemplate"].startswith("/") and user != "root@pam":
            raise PveError(500, f"Only root can pass arbitrary filesystem paths. at {_PERL_PLACE}.")
        self._check_template(user, v["ostemplate"], False)

    @staticmethod
    def _split_options(v: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        """The plain options as the config keeps them, and the mount points, the rootfs first."""
        options: dict[str, Any] = {}
        mount_points: dict[str, str] = {}
        storage = v.get("storage", "local")
        for key, value in v.items():
            if _MOUNT_POINT.match(key):
                bare = re.fullmatch(r"\d+(\.\d+)?", str(value))
                mount_points[key] = f"{storage}:{value}" if bare else str(value)
            elif key not in model.CREATE_ONLY and not key.startswith("unused"):
                options[key] = model.normalise(key, value)
        if mount_points and "rootfs" not in mount_points:
            raise PveError(500, "mount points configured, but 'rootfs' not set - aborting")
        rootfs = mount_points.pop("rootfs", f"{storage}:{DEFAULT_ROOTFS_GIB}")
        return options, {"rootfs": rootfs, **dict(sorted(mount_points.items()))}

    def _check_mount_points(self, user: str, vmid: int, mount_points: Mapping[str, str]) -> None:
        for value in mount_points.values():
            volume = model.parse_mount(value).get("volume", "")
            if model.mount_type(volume) == "volume":
                self._storage_for(volume.split(":")[0], user, vmid)
            elif user != "root@pam":
                raise PveError(500, "Only root can pass arbitrary filesystem paths.")

    async def _create_steps(
        self, ct: Ct, ostemplate: str, options: dict[str, Any], mount_points: dict[str, str]
    ) -> None:
        """What the vzcreate worker does. On an error nothing of the CT is left."""
        made: dict[str, Any] = {"unprivileged": options["unprivileged"]}
        try:
            for key, value in mount_points.items():
                made[key] = await asyncio.to_thread(self._realise_for, ct.vmid, key, value, made)
            archive = self._template_path(ostemplate)
            tasks.log(f"extracting archive '{archive}'")
            unpacked = await asyncio.to_thread(self._extract, ct, archive, made)
            tasks.log(f"Total bytes read: {unpacked.size}")
            await self.times.spend("create", 1 - _UNLOCKED_SHARE)
        except (VolumeError, TemplateError, TaskError, PveError, OSError) as error:
            await asyncio.to_thread(self._remove_files, ct, made)
            self._drop(ct)
            raise TaskError(f"unable to create CT {ct.vmid} - {message_of(error)}") from error
        except asyncio.CancelledError:
            await asyncio.to_thread(self._remove_files, ct, made)
            self._drop(ct)
            raise TaskError(f"unable to create CT {ct.vmid} - {tasks.INTERRUPTED}") from None
        ct.config = self._new_config(ct.vmid, options, made)
        if unpacked.options is not None:
            tasks.log("Detected OCI archive")
            ct.config |= {**unpacked.options, **_host_managed(options)}
        self.save(ct)
        # The CT has no `lock: create` any more; the worker goes on to hold the lock of its config.
        await self.times.spend("create", _UNLOCKED_SHARE)

    @staticmethod
    def _new_config(vmid: int, options: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
        config = {"hostname": f"CT{vmid}", "memory": 512, "swap": 512, "arch": "amd64", "ostype": "unmanaged"}
        config |= {**options, **made}
        if not config["unprivileged"]:
            del config["unprivileged"]
        return config

    def _template_path(self, ostemplate: str) -> Path:
        path = Path(ostemplate) if ostemplate.startswith("/") else self.storage_path(ostemplate)
        if not path.is_file():
            raise TaskError(f"volume '{ostemplate}' does not exist")
        return path

    def _extract(self, ct: Ct, archive: Path, config: Mapping[str, Any]) -> Unpacked:
        """Unpack the template into the new root. Runs in a thread."""
        volume = model.parse_mount(config["rootfs"])["volume"]
        root = Path(volume) if model.mount_type(volume) != "volume" else self.storage_path(volume)
        if model.mount_type(volume) == "bind" and not root.is_dir():
            raise VolumeError(f"directory '{root}' does not exist")
        shift = id_shift(config)
        try:
            if root.is_dir():
                return self.templates.unpack(archive, root, shift)
            return self._extract_into_image(ct, archive, root, shift)
        except TemplateError:
            compression = {".gz": "-z ", ".xz": "-J ", ".zst": "--zstd ", ".bz2": "-j "}.get(archive.suffix, "")
            command = _UNTAR.format(compression=compression, root=self.layout.rootfs(ct.vmid))
            if shift:
                maps = " ".join(f"-m {kind}:0:{ID_SHIFT}:{ID_COUNT}" for kind in "ug")
                command = f"lxc-usernsexec {maps} -- {command}"
            raise TemplateError(f"command '{command}' failed: exit code 2") from None

    def _extract_into_image(self, ct: Ct, archive: Path, image: Path, shift: int) -> Unpacked:
        rootfs = self.layout.rootfs(ct.vmid)
        rootfs.mkdir(parents=True, exist_ok=True)

        def extract() -> Unpacked:
            Mount(image, rootfs).perform()
            try:
                return self.templates.unpack(archive, rootfs, shift)
            finally:
                unmount(rootfs)

        return in_namespace_of_its_own(extract)

    def _realise_for(self, vmid: int, key: str, value: str, config: Mapping[str, Any]) -> str:
        """The mount point's config value, with its volume made where it asks for a new one."""
        options = model.parse_mount(value)
        wanted = model.NEW_DISK.match(options.get("volume", ""))
        if wanted:
            self.activate_storage(wanted.group(1))
            storage = self.disks[wanted.group(1)]
            size = int(float(wanted.group(2)) * GIB)
            name = self._free_name(vmid, wanted.group(1), directory=not size)
            for line in storage.allocate(name, size, id_shift(config)):
                tasks.log(line)
            options["volume"] = f"{storage.name}:{name}"
            options["size"] = format_size(size)
        return str(model.print_mount(options, key == "rootfs"))

    def _free_name(self, vmid: int, storage: str, *, directory: bool) -> str:
        for number in range(1000):
            name = self.disks[storage].new_name(vmid, number, directory=directory)
            if not self.disks[storage].volume_path(name).exists():
                return name
        raise VolumeError(f"no free volume name for CT {vmid} on storage '{storage}'")

    def _realise(self, vmid: int, key: str, value: str, _taken: Any, _storage: Any = None) -> str:
        # fakepve's hook for a mount point added to an existing CT.
        try:
            return self._realise_for(vmid, key, value, self.ct(vmid).config)
        except (VolumeError, OSError) as error:
            raise PveError(500, str(error)) from error

    def _remove_files(self, ct: Ct, config: Mapping[str, Any]) -> None:
        """Remove the CT's volumes, LXC directory and config file. Idempotent; runs in a thread."""
        for volume in owned_volumes(ct.vmid, config):
            try:
                self._free_volume(volume)
            except (PveError, VolumeError) as error:
                tasks.log(message_of(error))
        self._remove_lxc_files(ct)
        self.layout.conf(ct.vmid).unlink(missing_ok=True)

    def _free_volume(self, volume: str) -> None:
        """Remove one volume (PVE::Storage::vdisk_free). Raises PveError or VolumeError if it cannot be removed."""
        storage, _, name = volume.partition(":")
        self.activate_storage(storage)
        for line in self.disks[storage].free(name):
            tasks.log(line)

    def _remove_lxc_files(self, ct: Ct) -> None:
        """Remove what LXC has of the CT, but for what Proxmox leaves. Idempotent."""
        self.layout.remove_lxc_dir(ct.vmid)
        self.layout.stderr(ct.vmid).unlink(missing_ok=True)


def owned_volumes(vmid: int, config: Mapping[str, Any]) -> list[str]:
    """The volumes of a config that are the CT's own, each once: those that go with it."""
    named = (model.parse_mount(value)["volume"] for key, value in config.items() if model.MOUNT_KEY.match(key))
    return list(dict.fromkeys(
        volume for volume in named if model.mount_type(volume) == "volume" and model.volume_owner(volume) == vmid
    ))  # fmt: skip
