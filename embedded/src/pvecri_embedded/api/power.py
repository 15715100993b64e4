# SPDX-License-Identifier: AGPL-3.0-or-later
"""POST /nodes/{node}/lxc/{vmid}/status/*, DELETE /nodes/{node}/lxc/{vmid}: a CT's life."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path
from typing import Any

from fakepve import PveError, TaskError
from fakepve import lxc as model

from pvecri_embedded.api import tasks
from pvecri_embedded.api.base import Ct, message_of
from pvecri_embedded.api.create import CreateApi, id_shift, owned_volumes
from pvecri_embedded.layout import write_atomically
from pvecri_embedded.lxc import config_file, dhcp, hooks, nics
from pvecri_embedded.lxc.dhcp import DhcpFailed
from pvecri_embedded.lxc.monitor import Monitor, Mount, StartFailed
from pvecri_embedded.lxc.nics import Nic
from pvecri_embedded.storage.volumes import VolumeError

# What LXC sends for a clean shutdown unless lxc.signal.halt says otherwise.
DEFAULT_HALT_SIGNAL = signal.SIGPWR
MONITOR_TIMEOUT_S = 10.0
"""How long a start task waits for lxc-monitord to say that the CT starts."""


class PowerApi(CreateApi):
    """Overrides what fakepve models of starting, stopping and destroying a CT."""

    async def _start_steps(self, ct: Ct, user: str, skiplock: bool = False) -> None:
        """What the vzstart worker does once it holds the config lock."""
        if ct.template:
            raise TaskError("you can't start a CT if it's a template")
        if not skiplock:
            self._task_lock(ct, allow=("mounted",))
        if ct.monitor is not None:
            # Another task was faster: no change of state comes for which this one could wait.
            await asyncio.sleep(MONITOR_TIMEOUT_S)
            tasks.log("problem with monitor socket, but continuing anyway: got timeout")
            return
        # In the order of PVE::LXC::vm_start: pending changes, LXC's config, the volumes.
        self._apply(ct)
        self.save(ct)
        interfaces = await nics.plugged(nics.parse(ct.vmid, ct.config))
        self._write_lxc_config(ct, interfaces)
        self._activate_volumes(ct)
        # systemd, the hooks and Perl take their time before the CT's init runs, and after.
        await self.times.spend("start", 0.6)
        try:
            monitor = await Monitor.start(
                ct.vmid,
                self.layout.lxc_path,
                self.cgroups,
                self._mount_plan(ct),
                self.layout.stderr(ct.vmid),
            )
        except (StartFailed, TimeoutError, OSError) as error:
            for line in self._start_errors(ct.vmid, error):
                tasks.log(line)
            raise TaskError(f"startup for container '{ct.vmid}' failed") from error
        self.attach(ct, monitor)
        for nic in interfaces:
            if nic.by_dhcp:
                await self._ask_for_address(ct, monitor, nic)
        await self.times.spend("start", 0.4)

    def _activate_volumes(self, ct: Ct) -> None:
        """Raise TaskError unless the CT's volumes and their storages are there (Storage::activate_volumes)."""
        named = [model.parse_mount(value)["volume"] for key, value in ct.config.items() if _is_mounted(key)]
        volumes = [volume for volume in named if model.mount_type(volume) == "volume"]
        try:
            for storage in {volume.split(":")[0] for volume in volumes}:
                self.activate_storage(storage)
        except PveError as error:
            raise TaskError(error.message) from error
        for volume in volumes:
            if not self.storage_path(volume).exists():
                raise TaskError(f"volume '{volume}' does not exist")

    def _write_lxc_config(self, ct: Ct, interfaces: list[Nic]) -> None:
        rootfs, directory = self.layout.rootfs(ct.vmid), self.layout.hooks(ct.vmid)
        rootfs.mkdir(parents=True, exist_ok=True)
        scripts = hooks.write(hooks.scripts(interfaces, directory), directory)
        text = config_file.render(ct.vmid, ct.config, interfaces, rootfs, self.cgroups, scripts)
        write_atomically(self.layout.lxc_config(ct.vmid), text)
        self.layout.leave_behind(ct.vmid)

    async def _ask_for_address(self, ct: Ct, monitor: Monitor, nic: Nic) -> None:
        """A CT without its address runs all the same, as with Proxmox."""
        try:
            await dhcp.acquire(monitor, self.layout.hooks(ct.vmid), nic)
        except DhcpFailed as error:
            tasks.warn(f"DHCP failed - {error}")

    def attach(self, ct: Ct, monitor: Monitor) -> None:
        """The CT runs under ``monitor`` until that ends, for whatever reason."""
        ct.monitor = monitor
        ct.pid = monitor.init_pid
        monitor.on_end(lambda: self._detach(ct))

    @staticmethod
    def _detach(ct: Ct) -> None:
        ct.monitor = None
        ct.pid = None

    def adopt_running(self) -> None:
        """Find the CTs that have run on while no API process did."""
        for ct in self.own_cts():
            monitor = Monitor.adopt(ct.vmid, self.layout.lxc_path, self.cgroups)
            if monitor is not None:
                self.attach(ct, monitor)
            else:
                self.cgroups.sweep(ct.vmid)
                hooks.run_post_stop(self.layout.hooks(ct.vmid))

    def forget_running(self) -> None:
        """Let go of the CTs; they run on."""
        for ct in self.own_cts():
            if ct.monitor is not None:
                ct.monitor.forget()

    def _start_errors(self, vmid: int, error: Exception) -> list[str]:
        """Why the start failed: what lxc-start said, without the names of its sources."""
        if isinstance(error, OSError):
            return [str(error)]
        with contextlib.suppress(FileNotFoundError):
            text = self.layout.stderr(vmid).read_text(errors="replace")
            return [line.split(".c: ", 1)[-1] for line in text.splitlines()]
        return []

    def _mount_plan(self, ct: Ct) -> list[Mount]:
        """The CT's volumes, the root first."""
        root = self.layout.rootfs(ct.vmid)
        plan = []
        for key in sorted(filter(model.MOUNT_KEY.match, ct.config), key=lambda name: (name != "rootfs", name)):
            options = model.parse_mount(ct.config[key])
            if key.startswith("unused"):
                continue
            volume = options["volume"]
            source = self.storage_path(volume) if model.mount_type(volume) == "volume" else Path(volume)
            inside = "" if key == "rootfs" else options["mp"]
            plan.append(Mount(source, root, inside, id_shift(ct.config), read_only=options.get("ro") == "1"))
        return plan

    async def _lxc_stop(self, user: str, v: dict[str, Any]) -> str:
        skiplock = self._skiplock(user, v)
        ct = self._here(v)
        self._ct_running(ct, f"CT {v['vmid']} not running")

        async def body() -> None:
            if not skiplock:
                self._task_lock(ct, allow=("mounted",))
            await self.times.spend("stop", 0.5)
            await _kill(ct)
            await self.times.spend("stop", 0.5)

        if v.get("overrule-shutdown"):
            self._overrule_shutdown(ct)
        return str(await self._ct_task(ct, "vzstop", user, body))

    def _overrule_shutdown(self, ct: Ct) -> None:
        """End the shutdown tasks of the CT that still wait."""
        for record in self.tasklog:
            if record["type"] == "vzshutdown" and record["id"] == str(ct.vmid):
                self.abort_task(record["upid"])

    async def _ct_powerdown(self, ct: Ct, timeout: float, force: bool) -> None:
        """Ask the CT's init to end; after ``timeout`` seconds kill it or fail."""
        monitor = ct.monitor
        if monitor is None:
            return
        await self.times.spend("shutdown")
        monitor.signal_init(_halt_signal(ct))
        try:
            async with asyncio.timeout(timeout):
                await monitor.ended()
        except TimeoutError:
            if not force:
                tasks.log(f"command 'lxc-stop -n {ct.vmid} --nokill --timeout {timeout}' failed: exit code 1")
                raise TaskError("container did not stop") from None
            await _kill(ct)

    async def _lxc_suspend(self, user: str, v: dict[str, Any]) -> str:
        ct = self._here(v)
        self._ct_running(ct, f"CT {v['vmid']} not running")

        async def body() -> None:
            self._task_lock(ct)
            # As on a Proxmox node without CRIU, which is how it is installed.
            raise TaskError(f"command 'lxc-checkpoint -n {ct.vmid} -s -D /var/lib/vz/dump' failed: exit code 1")

        return str(await self._ct_task(ct, "vzsuspend", user, body))

    async def _lxc_rollback(self, user: str, v: dict[str, Any]) -> str:
        ct = self._find_ct(v["node"], v["vmid"])
        if v["snapname"] in ct.snapshots and not ct.lock:
            # In Proxmox the task does it; fakepve's, which knows no monitors, would leave the CT running.
            await _kill(ct)
        return str(await super()._lxc_rollback(user, v))

    async def _lxc_destroy(self, user: str, v: dict[str, Any]) -> str:
        ct = self._find_ct(v["node"], v["vmid"])
        self._check_destroy(ct, v)

        async def body() -> None:
            try:
                self._check_destroy(ct, v)
            except PveError as error:
                raise TaskError(error.message) from error
            if ct.status == "running":
                tasks.log(f"forced to stop CT {ct.vmid} before destroying!")
                await _kill(ct)
            await self.times.spend("destroy", 0.8)
            # In the order of PVE::LXC::destroy_lxc_container: if a volume cannot be removed the config stays, and
            # the CT can be destroyed again.
            await self._free_volumes(ct)
            self._remove_lxc_files(ct)
            # What stays, if the worker is killed before it has removed the config, too: only root can unlock it.
            ct.config, ct.pending = {"lock": "destroyed"}, {}
            self.save(ct)
            # Nobody's any more, while its id is still taken.
            self.forget_guest(ct.vmid)
            self._fw()["guests"].pop(ct.vmid, None)
            if v.get("purge"):
                tasks.log(f"purging CT {ct.vmid} from related configurations..")
                if ct.ha_managed:
                    tasks.log(f"NOTE: removed CT {ct.vmid} from HA resource configuration.")
            await self.times.spend("destroy", 0.2)
            self._drop(ct)
            self.layout.conf(ct.vmid).unlink(missing_ok=True)

        return str(await self._ct_task(ct, "vzdestroy", user, body))

    async def _free_volumes(self, ct: Ct) -> None:
        """Remove the CT's volumes; one that cannot be removed ends the task, and leaves the config as it was."""
        for volume in owned_volumes(ct.vmid, ct.config):
            try:
                await asyncio.to_thread(self._free_volume, volume)
            except (PveError, VolumeError) as error:
                raise TaskError(message_of(error)) from error

    def _check_destroy(self, ct: Ct, v: dict[str, Any]) -> None:
        self._check_protection(ct, f"can't remove CT {ct.vmid}")
        self._ct_check_lock(ct)
        if ct.ha_managed and not v.get("purge"):
            text = f"unable to remove CT {ct.vmid} - used in HA resources and purge parameter not set."
            raise PveError(500, text)
        if ct.status == "running" and not v.get("force"):
            raise PveError(500, f"unable to destroy CT {ct.vmid} - container is running")


def _is_mounted(key: str) -> bool:
    """Whether an option of the config is a volume that a start mounts."""
    return bool(model.MOUNT_KEY.match(key)) and not key.startswith("unused")


async def _kill(ct: Ct) -> None:
    """``lxc-stop --kill``: return when nothing of the CT runs any more."""
    monitor = ct.monitor
    if monitor is not None:
        monitor.kill()
        await monitor.ended()


def _halt_signal(ct: Ct) -> signal.Signals:
    for key, value in ct.config.get("lxc", []):
        if key == "lxc.signal.halt":
            return signal.Signals[value] if value.startswith("SIG") else signal.Signals(int(value))
    return DEFAULT_HALT_SIGNAL
