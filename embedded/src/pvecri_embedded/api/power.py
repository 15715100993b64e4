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
from pvecri_embedded.api.base import Ct
from pvecri_embedded.api.create import CreateApi, id_shift
from pvecri_embedded.layout import write_atomically
from pvecri_embedded.lxc import config_file, dhcp, hooks, nics
from pvecri_embedded.lxc.dhcp import DhcpFailed
from pvecri_embedded.lxc.monitor import Monitor, Mount, StartFailed
from pvecri_embedded.lxc.nics import Nic

# What LXC sends for a clean shutdown unless lxc.signal.halt says otherwise.
DEFAULT_HALT_SIGNAL = signal.SIGPWR


class PowerApi(CreateApi):
    """Overrides what fakepve models of starting, stopping and destroying a CT."""

    async def _start_steps(self, ct: Ct, user: str, skiplock: bool = False) -> None:
        """What the vzstart worker does once it holds the config lock."""
        if ct.template:
            raise TaskError("you can't start a CT if it's a template")
        if not skiplock:
            self._task_lock(ct, allow=("mounted",))
        if ct.monitor is not None:
            return
        self._apply(ct)
        self.save(ct)
        interfaces = await nics.plugged(nics.parse(ct.vmid, ct.config))
        self._write_lxc_config(ct, interfaces)
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
        for ct in self.cts:
            monitor = Monitor.adopt(ct.vmid, self.layout.lxc_path, self.cgroups)
            if monitor is not None:
                self.attach(ct, monitor)
            else:
                self.cgroups.sweep(ct.vmid)
                hooks.run_post_stop(self.layout.hooks(ct.vmid))

    def forget_running(self) -> None:
        """Let go of the CTs; they run on."""
        for ct in self.cts:
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
            if v.get("purge"):
                tasks.log(f"purging CT {ct.vmid} from related configurations..")
            await self.times.spend("destroy", 0.8)
            volumes, ct.config = dict(ct.config), {"lock": "destroyed"}
            self.save(ct)
            await asyncio.to_thread(self._remove_volumes, ct, volumes)
            # Nobody's any more, while its id is still taken.
            self.forget_guest(ct.vmid)
            await self.times.spend("destroy", 0.2)
            self._drop(ct)
            self._fw()["guests"].pop(ct.vmid, None)
            self.layout.conf(ct.vmid).unlink(missing_ok=True)

        return str(await self._ct_task(ct, "vzdestroy", user, body))

    def _check_destroy(self, ct: Ct, v: dict[str, Any]) -> None:
        self._check_protection(ct, f"can't remove CT {ct.vmid}")
        self._ct_check_lock(ct)
        if ct.status == "running" and not v.get("force"):
            raise PveError(500, f"unable to destroy CT {ct.vmid} - container is running")


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
