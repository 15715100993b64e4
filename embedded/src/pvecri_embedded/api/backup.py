# SPDX-License-Identifier: AGPL-3.0-or-later
"""POST /nodes/{node}/vzdump, and the restore of a backup: POST /nodes/{node}/lxc with ``restore=1``."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from fakepve import PveError, TaskError
from fakepve import lxc as model

from pvecri_embedded import ctconf
from pvecri_embedded.api import tasks
from pvecri_embedded.api.base import Ct, message_of
from pvecri_embedded.api.config import check_patterns
from pvecri_embedded.api.create import LOCK_TIMEOUT_S, id_shift
from pvecri_embedded.api.power import PowerApi
from pvecri_embedded.lxc.monitor import Mount
from pvecri_embedded.lxc.mounts import in_namespace_of_its_own, unmount
from pvecri_embedded.storage import backup
from pvecri_embedded.storage.backup import BackupError
from pvecri_embedded.storage.template import TemplateError
from pvecri_embedded.storage.volumes import GIB, VolumeError, parse_size
from pvecri_embedded.usercfg import ROOT

T = TypeVar("T")

_FAILURES = (BackupError, VolumeError, TemplateError, TaskError, PveError, OSError)
_STOPWAIT = 10  # minutes
_NOT_BACKED_UP = frozenset({"lock", "parent", "digest"})
_NOT_RESTORED = re.compile(r"digest|rootfs|snapshots|unprivileged|parent|template|mp\d+|unused\d+")


class BackupApi(PowerApi):
    """What fakepve has no model of. A backup holds the root filesystem: mount points are not backed up."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._dumping = asyncio.Lock()

    def _routes_backup(self) -> list[tuple[str, str, Any]]:
        return [("POST", "/nodes/{node}/vzdump", self._vzdump)]

    # -- backup ----------------------------------------------------------------------------------------------

    async def _vzdump(self, v: dict[str, Any], user: str) -> str:
        if v.get("all") or v.get("pool") or not v.get("vmid"):
            raise PveError(501, "the embedded node backs up the CTs of the parameter 'vmid' only")
        vmids = sorted({int(each) for each in re.split(r"[\s,;]+", str(v["vmid"])) if each})
        storage = v.get("storage", "local")
        self.require(user, f"/storage/{storage}", "Datastore.AllocateSpace")

        async def body() -> None:
            failed = 0
            async with self._dumping:
                tasks.log(f"INFO: starting new backup job: vzdump {' '.join(map(str, vmids))} --storage {storage}")
                for vmid in vmids:
                    self.require(user, f"/vms/{vmid}", "VM.Backup")
                for vmid in vmids:
                    failed += not await self._back_up(vmid, storage, v)
            if failed:
                tasks.log("INFO: Backup job finished with errors")
                raise TaskError("job errors")
            tasks.log("INFO: Backup job finished successfully")

        only = vmids[0] if len(vmids) == 1 else ""
        return str(await self.task(self.node, "vzdump", only, user, body))

    async def _back_up(self, vmid: int, storage: str, v: Mapping[str, Any]) -> bool:
        """Back up one CT; False if that failed, as the log says. It has ``lock: backup`` meanwhile."""
        tasks.log(f"INFO: Starting Backup of VM {vmid} (lxc)")
        try:
            self.activate_storage(storage)
            ct = self._find_ct(self.node, vmid)
            ending = backup.ENDINGS.get(str(v.get("compress", "0")))
            if ending is None:
                raise TaskError("the embedded node compresses with gzip only")
            tasks.log(f"INFO: status = {ct.status}")
            self._task_lock(ct)
            ct.lock = "backup"
            self.save(ct)
            stopped = False
            try:
                if ct.status == "running" and v.get("mode") == "stop":
                    tasks.log("INFO: stopping virtual guest")
                    await self._ct_powerdown(ct, int(v.get("stopwait", _STOPWAIT)) * 60, force=False)
                    stopped = True
                await self._write_backup(ct, storage, ending)
            finally:
                ct.lock = None
                self.save(ct)
                if stopped:
                    tasks.log("INFO: restarting vm")
                    await self._start_steps(ct, ROOT)
        except _FAILURES as error:
            tasks.log(f"ERROR: Backup of VM {vmid} failed - {message_of(error)}")
            return False
        tasks.log(f"INFO: Finished Backup of VM {vmid} (00:00:00)")
        return True

    async def _write_backup(self, ct: Ct, storage: str, ending: str) -> None:
        if ct.status == "running":
            # No storage here has snapshots.
            tasks.log("INFO: mode failure - some volumes do not support snapshots")
            tasks.log("INFO: trying 'suspend' mode instead")
        tasks.log(f"INFO: backup mode: {'suspend' if ct.status == 'running' else 'stop'}")
        tasks.log(f"INFO: CT Name: {ct.config.get('hostname')}")
        tasks.log("INFO: including mount point rootfs ('/') in backup")
        config = {key: value for key, value in ct.config.items() if key not in _NOT_BACKED_UP}
        text = ctconf.dump(ctconf.CtConf(config))
        target = self.disks[storage].volume_path(f"backup/{backup.new_name(ct.vmid, ending)}")
        tasks.log(f"INFO: creating vzdump archive '{target}'")

        def write(root: Path) -> int:
            return backup.write(target, text, root, id_shift(config))

        size = await asyncio.to_thread(self._in_root, ct.vmid, config, write)
        tasks.log(f"INFO: archive file size: {size}B")

    def _in_root(self, vmid: int, config: Mapping[str, Any], function: Callable[[Path], T]) -> T:
        """Call ``function`` with the CT's root directory; an image is mounted for that. Runs in a thread."""
        root = self.storage_path(model.parse_mount(config["rootfs"])["volume"])
        if root.is_dir():
            return function(root)
        rootfs = self.layout.rootfs(vmid)
        rootfs.mkdir(parents=True, exist_ok=True)

        def mounted() -> T:
            Mount(root, rootfs).perform()
            try:
                return function(rootfs)
            finally:
                unmount(rootfs)

        return in_namespace_of_its_own(mounted)

    # -- restore ---------------------------------------------------------------------------------------------

    async def _lxc_create(self, user: str, v: dict[str, Any]) -> str:
        return await (self._lxc_restore(user, v) if v.get("restore") else super()._lxc_create(user, v))

    async def _lxc_restore(self, user: str, v: dict[str, Any]) -> str:
        vmid, pool, force = int(v["vmid"]), v.get("pool"), bool(v.get("force"))
        self.need_quorum()
        check_patterns(v)
        old = self.ct(vmid) if force else None
        old = old if old is not None and old.node == self.node else None
        self._check_restore(user, vmid, v, old)
        options, mount_points = self._split_options(v)
        if "rootfs" in v:
            self._check_mount_points(user, vmid, mount_points)
        else:  # the sizes are the backup's
            self._storage_for(v.get("storage", "local"), user, vmid)
            mount_points = {}
        ct = await self._reserve_restore(vmid, old)

        async def body() -> None:
            await self._restore_steps(ct, user, v, options, mount_points)
            if pool:
                self._pool_join(pool, vmid)

        async def start() -> None:
            await self._ct_task(ct, "vzstart", user, lambda: self._start_steps(ct, user))

        return str(await self._ct_task(ct, "vzrestore", user, body, after=start if v.get("start") else None))

    def _check_restore(self, user: str, vmid: int, v: Mapping[str, Any], old: Ct | None) -> None:
        """What Proxmox refuses before it reserves the VMID."""
        pool = v.get("pool")
        if v.get("ha-managed"):
            self.require(user, "/", "Sys.Console")
        if old is None:
            self._check_vmid_unused(vmid)
        else:
            if old.status == "running":
                raise PveError(500, "can't overwrite running container")
            self._check_protection(old, f"unable to restore CT {vmid}")
        if pool and pool not in self.pools:
            raise PveError(403, f"Permission check failed (pool '{pool}' does not exist)")
        paths = [f"/vms/{vmid}", *([f"/pool/{pool}"] if pool else [])]
        if not any(self.allowed(user, path, "VM.Allocate") for path in paths):
            if old is None or not self.allowed(user, f"/vms/{vmid}", "VM.Backup"):
                raise PveError(403, "Permission check failed")
            if old.config.get("unprivileged") and not int(v.get("unprivileged", 1)):
                self.require(user, "/", "Sys.Modify")
        options = {key: value for key, value in v.items() if key not in model.CREATE_ONLY}
        self._check_modify_perm(user, vmid, pool, None, options, [], v.get("unprivileged"))
        self._check_template(user, v["ostemplate"], True)
        storage, colon, name = str(v["ostemplate"]).partition(":")
        if colon:
            kind, owner, _ = self._parse_volname(self.storages[storage], name)
            if owner != vmid:
                self._check_access(user, storage, kind, owner, v["ostemplate"])

    async def _reserve_restore(self, vmid: int, old: Ct | None) -> Ct:
        """Write ``lock: create`` to the config of the CT (create_and_lock_config), which may be a new one."""
        if old is None:
            ct = Ct(vmid, node=self.node, defaults=False, config={"lock": "create"})
            try:
                await self.reserve(ct)
            except PveError as error:
                message = error.message.replace("unable to create CT", "unable to restore CT")
                raise PveError(error.status, message) from error
            return ct
        try:
            await self.acquire(old, "reserve", wait=LOCK_TIMEOUT_S)
        except TaskError as error:
            raise PveError(500, f"unable to restore CT {vmid} - {error}") from error
        try:
            if old.lock:
                raise PveError(500, f"unable to restore CT {vmid} - CT is locked ({old.lock})")
            old.lock = "create"
            self.save(old)
        finally:
            self.release(old, "reserve")
        return old

    async def _restore_steps(
        self, ct: Ct, user: str, v: Mapping[str, Any], options: dict[str, Any], mount_points: dict[str, str]
    ) -> None:
        """What the vzrestore worker does. An error before the new volumes leaves an existing CT as it was."""
        before = {key: value for key, value in ct.config.items() if key != "lock"}
        made: dict[str, Any] = {}
        untouched = bool(before)
        try:
            if ct.status == "running":
                raise TaskError("can't overwrite running container")
            archive = self._template_path(v["ostemplate"])
            tasks.log(f"recovering backed-up configuration from '{v['ostemplate']}'")
            original = ctconf.parse(await asyncio.to_thread(backup.read_config, archive)).config
            unprivileged = int(v.get("unprivileged", original.get("unprivileged", 0)))
            if not unprivileged and (not before or before.get("unprivileged")):
                self.require(user, "/", "Sys.Modify")
            mount_points = mount_points or self._mount_points_of(original, v.get("storage", "local"))
            made["unprivileged"] = unprivileged
            untouched = False
            for key, value in mount_points.items():
                made[key] = await asyncio.to_thread(self._realise_for, ct.vmid, key, value, made)
            if before:  # after the new ones: their names differ from those of the old
                await self._free_old(ct.vmid, before)
            tasks.log(f"restoring '{v['ostemplate']}' now..")
            unpacked = await asyncio.to_thread(self._extract, ct, archive, made)
            tasks.log(f"Total bytes read: {unpacked.size}")
            tasks.log("merging backed-up and given configuration..")
            await asyncio.to_thread(self._in_root, ct.vmid, made, backup.remove_config)
            await self.times.spend("create")
        except _FAILURES as error:
            await asyncio.to_thread(self._undo_restore, ct, made, untouched=untouched)
            raise TaskError(f"unable to restore CT {ct.vmid} - {message_of(error)}") from error
        merged = {**_restored(original, options, restricted=user != ROOT, unique=bool(v.get("unique"))), **options}
        ct.config = self._new_config(ct.vmid, merged, made)
        ct.pending, ct.snapshots = {}, {}
        if original.get("template"):
            tasks.log("Convert restored container to template...")
            ct.config["template"] = 1
        self.save(ct)

    @staticmethod
    def _mount_points_of(original: Mapping[str, Any], storage: str) -> dict[str, str]:
        """The mount points to make for those of a backup's config, on ``storage``."""
        wanted: dict[str, str] = {}
        for key in sorted(key for key in original if re.fullmatch(r"rootfs|mp\d+", key)):
            options = dict(model.parse_mount(original[key]))
            if model.mount_type(options["volume"]) != "volume":
                raise TaskError(
                    f"restoring '{key}' to {model.mount_type(options['volume'])} mount is not supported"
                )
            if "size" not in options:
                raise TaskError(f"unable to detect disk size - please specify {key} (size)")
            size = parse_size(str(options.pop("size"))) / GIB
            options["volume"] = f"{storage}:{size:g}"
            wanted[key] = str(model.print_mount(options, key == "rootfs"))
        if "rootfs" not in wanted:
            raise TaskError("rootfs configuration could not be recovered, please check and specify manually!")
        return wanted

    async def _free_old(self, vmid: int, config: Mapping[str, Any]) -> None:
        await self._free_volumes(Ct(vmid, node=self.node, defaults=False, config=dict(config)))

    def _undo_restore(self, ct: Ct, made: dict[str, Any], *, untouched: bool) -> None:
        if untouched:
            ct.lock = None
            self.save(ct)
            return
        self._remove_files(ct, made)
        self._drop(ct)


def _restored(
    original: Mapping[str, Any], given: Mapping[str, Any], *, restricted: bool, unique: bool
) -> dict[str, Any]:
    """The options of a backup's config that a restore takes over (PVE::LXC::Create, sanitize_and_merge_config)."""
    taken: dict[str, Any] = {}
    for key, value in original.items():
        if _NOT_RESTORED.fullmatch(key):
            continue
        if key == "lxc" and restricted:
            tasks.warn("skipping custom lxc options, restore manually as root:")
        elif re.fullmatch(r"net\d+", key) and unique:
            taken[key] = model.normalise(key, re.sub(r"hwaddr=[^,]*,?", "", value))
        elif key not in given:
            taken[key] = value
    return taken
