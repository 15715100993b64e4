# SPDX-License-Identifier: AGPL-3.0-or-later
"""PUT /nodes/{node}/lxc/{vmid}/config: what changes is kept, and felt by a running CT at once."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fakepve import PveError, TaskError
from fakepve import lxc as model

from pvecri_embedded.api.base import Base, Ct, parameter_error
from pvecri_embedded.storage.volumes import VolumeError, format_size, parse_size
from pvecri_embedded.usercfg import ROOT

# What the schema says of these and fakepve's copy of it does not.
_PATTERNS = {
    "env": re.compile(r"\w+=[^\x00-\x1f\x7f]*(\0\w+=[^\x00-\x1f\x7f]*)*"),
    "entrypoint": re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]+"),
}
_MEMORY = frozenset({"memory", "swap"})
_CPU = frozenset({"cpulimit", "cpuunits"})


class ConfigApi(Base):
    """Extends fakepve's rules for config changes with the file and the running CT."""

    async def _lxc_config_put(self, user: str, v: dict[str, Any]) -> None:
        check_patterns(v)
        await super()._lxc_config_put(user, v)

    async def _update_config(
        self, ct: Ct, user: str, values: dict[str, Any], deletes: list[str], reverts: list[str]
    ) -> None:
        await self.times.spend("config")
        before = dict(ct.config)
        await super()._update_config(ct, user, values, deletes, reverts)
        changed = {key for key in {*before, *ct.config} if before.get(key) != ct.config.get(key)}
        try:
            self._apply_limits(ct, changed)
        except OSError as error:
            ct.config = before
            raise PveError(500, f"unable to apply changes to CT {ct.vmid}: {error}") from error
        finally:
            self.save(ct)

    def _check_modify_perm(
        self,
        user: str,
        vmid: int,
        pool: str | None,
        old: Mapping[str, Any] | None,
        new: Mapping[str, Any],
        deletes: Sequence[str],
        unprivileged: Any,
    ) -> None:
        """The rights that options need. Those on a pool count for all of them but tags."""
        if user != ROOT and "tags" in (*new, *deletes):
            self._vm_perm(user, vmid, None, "VM.Config.Options")
            self.check_tags(user, str((old or {}).get("tags", "")), str(new.get("tags", "")))
        others = {name: value for name, value in new.items() if name != "tags"}
        kept = [name for name in deletes if name != "tags"]
        super()._check_modify_perm(user, vmid, pool, old, others, kept, unprivileged)

    def _check_bridge(self, user: str, net: str) -> None:
        """SDN.Use on the bridge, or on the VLANs alone that are asked for."""
        options = dict(pair.partition("=")[::2] for pair in net.split(","))
        if "bridge" not in options:
            return
        path = f"/sdn/zones/localnetwork/{options['bridge']}"
        tags = [*([options["tag"]] if "tag" in options else []), *_trunks(options.get("trunks", ""))]
        for place in [f"{path}/{tag}" for tag in tags] or [path]:
            self.require(user, place, "SDN.Use")

    async def _lxc_resize(self, user: str, v: dict[str, Any]) -> str:
        """PUT /nodes/{node}/lxc/{vmid}/resize: a task that grows the image and its filesystem."""
        ct, disk = self._find_ct(v["node"], v["vmid"]), v["disk"]
        self._ct_check_lock(ct)
        self._check_modify_perm(user, ct.vmid, None, ct.config, {disk: "0:0"}, [], ct.config.get("unprivileged"))
        if v.get("digest", ct.digest()) != ct.digest():
            raise PveError(500, "detected modified configuration - file changed by other user? Try again.")
        volume, size = _new_size(ct, disk, str(v["size"]))
        storage, _, name = volume.partition(":")
        self.require(user, f"/storage/{storage}", "Datastore.AllocateSpace")

        async def body() -> None:
            if ct.monitor is not None:
                raise TaskError("the embedded node resizes the volumes of stopped CTs only")
            try:
                await asyncio.to_thread(self.disks[storage].resize, name, size)
            except (VolumeError, OSError) as error:
                raise TaskError(str(error)) from error
            options = {**model.parse_mount(ct.config[disk]), "size": format_size(size)}
            ct.config[disk] = model.print_mount(options, disk == "rootfs")

        return str(await self._ct_task(ct, "resize", user, body))

    def _apply_limits(self, ct: Ct, changed: set[str]) -> None:
        """Write changed limits to the cgroup of a CT that runs."""
        if ct.monitor is None:
            return
        if changed & _MEMORY:
            self.cgroups.apply(ct.vmid, self.cgroups.memory_limits(ct.config))
        if changed & _CPU:
            self.cgroups.apply(ct.vmid, self.cgroups.cpu_limits(ct.config))
        if "cores" in changed:
            self.cgroups.set_cores(ct.vmid, int(ct.config.get("cores") or 0))


def check_patterns(values: Mapping[str, Any]) -> None:
    """Raise Proxmox's 400 for an option that does not match its pattern."""
    for name, pattern in _PATTERNS.items():
        if values.get(name) is not None and not pattern.fullmatch(str(values[name])):
            raise parameter_error(name, "value does not match the regex pattern")


def _trunks(text: str) -> list[str]:
    """The VLANs of ``trunks=1;3-5``."""
    vlans: list[str] = []
    for part in filter(None, text.split(";")):
        first, _, last = part.partition("-")
        vlans += map(str, range(int(first), int(last or first) + 1))
    return vlans


def _new_size(ct: Ct, disk: str, asked: str) -> tuple[str, int]:
    """The volume behind ``disk`` and the bytes it is to have."""
    if disk not in ct.config:
        missing = ("volume",) if disk == "rootfs" else ("volume", "mp")
        text = "property is missing and it is not optional"
        raise PveError(500, "format error", dict.fromkeys(missing, text))
    options = model.parse_mount(ct.config[disk])
    if model.mount_type(options["volume"]) != "volume":
        raise PveError(500, f"unable to parse volume ID '{options['volume']}'")
    old = parse_size(options.get("size", "0"))
    try:
        new = parse_size(asked.removeprefix("+")) + (old if asked.startswith("+") else 0)
    except VolumeError as error:
        raise PveError(500, str(error)) from error
    if new < old:
        raise PveError(500, "unable to shrink disk size")
    if new == old:
        raise PveError(500, "disk is already at specified size")
    return options["volume"], new
