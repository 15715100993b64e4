# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the API says of CTs and of the node: figures of the real machine."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from pathlib import Path
from typing import Any

from fakepve import lxc as model

from pvecri_embedded.api.base import Base, Ct
from pvecri_embedded.lxc.cgroup import MIB
from pvecri_embedded.storage.volumes import GIB, parse_size

_PRESSURES = tuple(f"pressure{what}{kind}" for what in ("cpu", "io", "memory") for kind in ("some", "full"))
_RRD_STEPS_S = {"hour": 60, "day": 60, "week": 1800, "month": 1800, "year": 21600, "decade": 604800}
_RRD_POINTS = 70
_PUBLISHED_FOR_S = 300.0
"""pmxcfs forgets what was published of a guest after five minutes."""
_UNLIMITED_ROOTFS = 4 * GIB
_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


class ViewsApi(Base):
    """Overrides the figures that fakepve invents."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._published: dict[int, tuple[float, dict[str, Any]]] = {}
        """What the cluster was told last of each VMID, and when (monotonic seconds)."""

    def _status(self, ct: Ct) -> dict[str, Any]:
        """The CT as the list and status/current show it."""
        data: dict[str, Any] = {"vmid": ct.vmid, "name": ct.name, "type": "lxc", "status": ct.status}
        data |= self._figures(ct)
        data["cpus"] = data.pop("maxcpu")
        data["maxswap"] = int(ct.config.get("swap", 0)) * MIB
        if ct.monitor is not None:
            data["pid"] = ct.monitor.current_init_pid()
            data |= dict.fromkeys(_PRESSURES)
        optional = {"tags": ct.config.get("tags"), "lock": ct.lock, "template": 1 if ct.template else None}
        return data | {key: value for key, value in optional.items() if value}

    def _figures(self, ct: Ct) -> dict[str, Any]:
        """Limits and use: bytes, seconds, and a share of one CPU for ``cpu``."""
        data: dict[str, Any] = dict.fromkeys(
            ("cpu", "mem", "swap", "disk", "uptime", "netin", "netout", "diskread", "diskwrite"), 0
        )
        data |= {"maxcpu": self._cpus(ct), "maxmem": self._maxmem(ct), "maxdisk": self._maxdisk(ct)}
        pid = ct.monitor and ct.monitor.current_init_pid()
        if not pid:
            return data
        usage = self.cgroups.usage(ct.vmid)
        data |= {"mem": usage.memory, "swap": usage.swap, "cpu": _cpu_share(ct, usage.cpu_ns)}
        data |= {"diskread": usage.disk_read, "diskwrite": usage.disk_written, "uptime": uptime(pid)}
        data["netin"], data["netout"] = _traffic(ct.vmid)
        try:
            root = os.statvfs(f"/proc/{pid}/root")
        except OSError:
            return data
        data["disk"] = (root.f_blocks - root.f_bfree) * root.f_frsize
        data["maxdisk"] = root.f_blocks * root.f_frsize
        return data

    def _cpus(self, ct: Ct) -> int | float:
        cpus: int | float = ct.config.get("cores") or ct.config.get("cpulimit") or os.cpu_count() or 1
        return cpus

    def _maxdisk(self, ct: Ct) -> int:
        """The size of the rootfs in its config, as it shows of a stopped CT; 4 GiB if there is no limit."""
        rootfs = model.parse_mount(ct.config.get("rootfs", ""))
        return parse_size(rootfs.get("size", "0T")) or _UNLIMITED_ROOTFS

    def _uptime(self, ct: Ct) -> int:
        pid = ct.monitor and ct.monitor.current_init_pid()
        return uptime(pid) if pid else 0

    def ct_resources(self, user: str, kind: str | None = None) -> list[dict[str, Any]]:
        """The CTs as /cluster/resources lists them."""
        if kind not in (None, "vm"):
            return []
        return [self._resource(user, ct) for ct in self.cts if self.allowed(user, f"/vms/{ct.vmid}", "VM.Audit")]

    def publish_figures(self) -> None:
        """Tell the cluster of the CTs' state and figures (pvestatd's update_lxc_status, every ten seconds)."""
        now = time.monotonic()
        for ct in self.own_cts():
            figures = self._figures(ct)
            del figures["swap"]
            state = {"name": ct.name, "status": ct.status, "template": int(ct.template), "memhost": 0}
            self._published[ct.vmid] = (now, {**state, **figures})

    def _resource(self, user: str, ct: Ct) -> dict[str, Any]:
        """A CT as the cluster knows it: that it is there is current, its state is as it was published last.

        What was published of a VMID is not taken back when its CT is destroyed, so the next one has it at first.
        """
        item = {"id": ct.guest, "type": "lxc", "node": ct.node, "vmid": ct.vmid, "status": "unknown"}
        when, published = self._published.get(ct.vmid, (float("-inf"), {}))
        if time.monotonic() - when <= _PUBLISHED_FOR_S:
            item |= published
        pool = ct.pool if ct.pool and self.allowed(user, f"/pool/{ct.pool}", "Pool.Audit") else None
        optional = {"lock": ct.lock, "pool": pool, "tags": ct.config.get("tags")}
        return item | {key: value for key, value in optional.items() if value}

    def _routes_views(self) -> list[tuple[str, str, Any]]:
        return [("GET", "/nodes/{node}/lxc/{vmid}/rrddata", self._rrddata)]

    async def _rrddata(self, v: dict[str, Any], user: str) -> list[dict[str, Any]]:
        """The history of a CT. None is kept: the times are there, and the figures of now."""
        ct = self._find_ct(v["node"], v["vmid"])
        step = _RRD_STEPS_S[v["timeframe"]]
        last = int(time.time()) // step * step
        points: list[dict[str, Any]] = [{"time": last - step * n} for n in range(_RRD_POINTS, -1, -1)]
        if ct.monitor is not None:
            figures = self._figures(ct)
            points[-1] |= {key: value for key, value in figures.items() if key not in {"swap", "uptime"}}
        return points

    async def _lxc_interfaces(self, user: str, v: dict[str, Any]) -> list[dict[str, Any]] | None:
        """The interfaces in the CT's network namespace; nothing of a CT that does not run or is not there."""
        ct = self._here(v)
        pid = ct.monitor.current_init_pid() if ct is not None and ct.monitor is not None else None
        if pid is None:
            return None
        process = await asyncio.create_subprocess_exec(
            "nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-json", "address",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        output, _ = await process.communicate()
        return [interface(link) for link in json.loads(output or "[]")]


def interface(link: dict[str, Any]) -> dict[str, Any]:
    """A link of ``ip -json address`` as the API shows it."""
    hwaddr = link.get("address", "")
    item: dict[str, Any] = {"name": link["ifname"], "hwaddr": hwaddr, "hardware-address": hwaddr}
    addresses = [entry for entry in link.get("addr_info", []) if "local" in entry]
    for entry in addresses:
        item[entry["family"]] = f"{entry['local']}/{entry['prefixlen']}"
    item["ip-addresses"] = [
        {
            "ip-address": entry["local"],
            "prefix": str(entry["prefixlen"]),
            "ip-address-type": entry["family"],
        }
        for entry in addresses
    ]
    return item


def uptime(pid: int) -> int:
    """Whole seconds since the process began, 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return max(0, int(time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / _CLOCK_TICKS))


def _cpu_share(ct: Ct, cpu_ns: int) -> float:
    """The CPU time used since the last look, as a share of one CPU."""
    now = time.monotonic()
    then, before = ct.cpu_sample
    ct.cpu_sample = (now, cpu_ns)
    return max(0.0, (cpu_ns - before) / 1e9 / (now - then)) if then and now > then else 0.0


def _traffic(vmid: int) -> tuple[int, int]:
    """Bytes into and out of the CT by the veths that its config names, as the host counts them."""
    received = sent = 0
    for line in Path("/proc/net/dev").read_text().splitlines()[2:]:
        name, _, counters = line.partition(":")
        if re.fullmatch(rf"veth{vmid}i\d+", name.strip()):
            fields = counters.split()
            # The host's end of the veth: what it has sent the CT has received.
            received += int(fields[8])
            sent += int(fields[0])
    return received, sent
