# SPDX-License-Identifier: AGPL-3.0-or-later
"""POST /nodes/{node}/lxc/{vmid}/clone and /template. A linked clone is a copy here as well."""

from __future__ import annotations

import asyncio
import copy
import re
from collections.abc import Mapping
from typing import Any

from fakepve import PveError, TaskError
from fakepve import lxc as model

from pvecri_embedded.api import tasks
from pvecri_embedded.api.base import Ct
from pvecri_embedded.api.power import PowerApi
from pvecri_embedded.storage.volumes import VolumeError

_NOT_CLONED = frozenset({"lock", "parent", "snaptime", "snapstate", "template", "digest"})
_LINKABLE_FROM = {"lvmthin": {"base", "snapshot"}, "btrfs": {"base", "snapshot", "current"}}


class CloneApi(PowerApi):
    """Overrides fakepve's clones and templates, which have no volumes."""

    async def _lxc_clone(self, user: str, v: dict[str, Any]) -> str:
        vmid, newid = int(v["vmid"]), int(v["newid"])
        pool = v.get("pool")
        self._check_clone_target(v)
        source = self._find_ct(v["node"], vmid)
        # From here to the clone's end nothing changes under it.
        await self._lock_source(source)
        new: Ct | None = None
        try:
            self._check_vmid_unused(newid)
            config = self._clone_config(user, source, v)
            new = Ct(newid, node=self.node, defaults=False, config={**config, "lock": "create"})
            self.cts.append(new)
            self.save(new)
        except PveError:
            self._unlock_source(source)
            raise
        self._clone_firewall(vmid, newid)
        running = source.status

        async def body() -> None:
            try:
                if source.status != running:
                    self._remove_files(new, {})
                    self._drop(new)
                    raise TaskError("unexpected state change")
                await self._copy_volumes(user, source, new, v)
                if pool:
                    self._pool_join(pool, newid)
            finally:
                self._unlock_source(source)

        log = [f"creating a clone of container {vmid} with ID {newid}"]
        return str(await self.task(self.node, "vzclone", vmid, user, body, vm=new, lock=False, log=log))

    def _check_clone_target(self, v: Mapping[str, Any]) -> None:
        """What Proxmox checks before it reads the source: pool, node, storage, quorum."""
        pool, target, storage = v.get("pool"), v.get("target"), v.get("storage")
        if pool and pool not in self.pools:
            raise PveError(403, f"Permission check failed (pool '{pool}' does not exist)")
        if target and target not in (self.node, "localhost"):  # the only node there is
            raise PveError(500, f"no such cluster node '{target}'")
        if storage:
            self._check_enabled(storage, self.node)
        self.need_quorum()

    async def _lock_source(self, source: Ct) -> None:
        await self._config_lock(source)
        try:
            self._ct_check_lock(source)
            source.lock = "disk"
            self.save(source)
        finally:
            self.release(source, "config")

    def _unlock_source(self, source: Ct) -> None:
        if source.lock == "disk":
            source.lock = None
            self.save(source)

    def _clone_firewall(self, vmid: int, newid: int) -> None:
        guests = self._fw()["guests"]
        if vmid in guests:
            guests[newid] = copy.deepcopy(guests[vmid])

    def _clone_config(self, user: str, source: Ct, v: Mapping[str, Any]) -> dict[str, Any]:
        """The new CT's config but for its volumes. Raises what Proxmox finds wrong before the task."""
        full = self._is_full(source, v)
        if v.get("storage") and not full:
            raise PveError(500, "parameter 'storage' not allowed for linked clones")
        config: dict[str, Any] = {}
        for key, value in self._clone_source(source, v).items():
            if model.MOUNT_KEY.match(key):
                if not key.startswith("unused"):
                    self._check_clonable(user, source, key, value, v)
            elif re.fullmatch(r"net\d+", key):
                config[key] = model.normalise(key, re.sub(r"hwaddr=[^,]*,?", "", value))
                self._check_bridge(user, config[key])
            elif key not in _NOT_CLONED:
                config[key] = value
        return config | {key: v[key] for key in ("hostname", "description") if v.get(key)}

    @staticmethod
    def _is_full(source: Ct, v: Mapping[str, Any]) -> bool:
        return bool(v.get("full", not source.template))

    @staticmethod
    def _clone_source(source: Ct, v: Mapping[str, Any]) -> dict[str, Any]:
        name = v.get("snapname")
        if not name:
            return dict(source.config)
        if name not in source.snapshots:
            raise PveError(500, f"snapshot '{name}' does not exist")
        return dict(source.snapshots[name])

    def _check_clonable(self, user: str, source: Ct, key: str, value: str, v: Mapping[str, Any]) -> None:
        volume = model.parse_mount(value)["volume"]
        kind = model.mount_type(volume)
        if kind != "volume":
            raise PveError(500, f"unable to clone mountpoint '{key}' (type {kind})")
        if self._is_full(source, v):
            if source.status == "running" and not v.get("snapname"):
                raise PveError(500, "Full clone of a running container is only possible from a snapshot")
        elif not self._can_link(source, volume, from_snapshot=bool(v.get("snapname"))):
            raise PveError(500, f"Linked clone feature for '{volume}' is not available")
        target = v.get("storage") or volume.partition(":")[0]
        if target not in self.storages:
            raise PveError(500, f"storage '{target}' does not exist")
        self.require(user, f"/storage/{target}", "Datastore.AllocateSpace")

    def _can_link(self, source: Ct, volume: str, *, from_snapshot: bool) -> bool:
        """Proxmox's table of what each storage can make a linked clone of."""
        if volume.endswith(".subvol"):
            return False
        state = "snapshot" if from_snapshot else "base" if source.template else "current"
        return state in _LINKABLE_FROM.get(self.disks[volume.partition(":")[0]].kind, set())

    async def _copy_volumes(self, user: str, source: Ct, new: Ct, v: Mapping[str, Any]) -> None:
        """What the vzclone worker does. On an error nothing of the clone is left."""
        made: dict[str, Any] = {}
        full = self._is_full(source, v)
        try:
            for key, value in sorted(self._clone_source(source, v).items()):
                if re.fullmatch(r"rootfs|mp\d+", key):
                    volume = model.parse_mount(value)["volume"]
                    kind = "create full clone of mountpoint" if full else "create linked clone of mount point"
                    tasks.log(f"{kind} {key} ({volume})")
                    made[key] = await asyncio.to_thread(self._copy_volume, new.vmid, key, value, v.get("storage"))
        except (VolumeError, OSError) as error:
            await asyncio.to_thread(self._remove_files, new, made)
            self._drop(new)
            raise TaskError(f"clone failed: {error}") from error
        new.config |= made
        new.lock = None

    def _copy_volume(self, vmid: int, key: str, value: str, storage: str | None) -> str:
        options = model.parse_mount(value)
        old_storage, _, old_name = options["volume"].partition(":")
        source = self.disks[old_storage].volume_path(old_name)
        target = storage or old_storage
        name = self._free_name(vmid, target, directory=source.is_dir())
        self.disks[target].copy_from(source, name)
        return str(model.print_mount({**options, "volume": f"{target}:{name}"}, key == "rootfs"))

    async def _lxc_template(self, user: str, v: dict[str, Any]) -> None:
        """Answers nothing: the vztemplate task runs on without its UPID being told."""
        ct = self._find_ct(v["node"], v["vmid"])
        self._ct_check_lock(ct)
        if ct.snapshots:
            raise PveError(500, "unable to create template, because CT contains snapshots")
        if ct.template:
            raise PveError(500, "you can't convert a template to a template")
        if ct.status == "running":
            raise PveError(500, "you can't convert a CT to template if the CT is running")

        async def body() -> None:
            for key, options in ct.volumes():
                storage, _, name = options["volume"].partition(":")
                base = re.sub(r"\bvm-(\d+)-disk", r"base-\1-disk", name)
                disk = self.disks[storage]
                disk.volume_path(name).rename(disk.volume_path(base))
                ct.config[key] = model.print_mount({**options, "volume": f"{storage}:{base}"}, key == "rootfs")
            ct.config["template"] = 1

        await self._ct_task(ct, "vztemplate", user, body)
