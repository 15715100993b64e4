# SPDX-License-Identifier: AGPL-3.0-or-later
"""The node itself: /nodes, /nodes/{node}/status and /cluster/resources with the real machine's figures."""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

from aiohttp import web
from fakepve import shapes
from fakepve.server import USER, params

from pvecri_embedded import datacenter
from pvecri_embedded.api.access import AccessApi
from pvecri_embedded.layout import write_atomically

_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


class MachineApi(AccessApi):
    """Overrides what fakepve invents of nodes."""

    def _routes_machine(self) -> list[tuple[str, str, Any]]:
        node = "/nodes/{node}"
        return [
            ("GET", f"{node}/status", self._node_status),
            ("GET", f"{node}/aplinfo", self._nothing),
            ("GET", f"{node}/dns", self._dns),
            ("GET", "/cluster/options", self._cluster_options),
            ("PUT", "/cluster/options", self._cluster_options_update),
        ]

    async def _node_status(self, v: dict[str, Any], user: str) -> dict[str, Any]:
        """GET /nodes/{node}/status. Sizes in bytes."""
        memory, root = memory_bytes(), os.statvfs("/")
        system = platform.uname()
        return {
            "uptime": uptime(),
            "cpu": load(),
            "wait": 0,
            "idle": 0,
            "loadavg": [f"{value:.2f}" for value in os.getloadavg()],
            "kversion": f"{system.system} {system.release} {system.version}",
            "current-kernel": {
                "sysname": system.system, "release": system.release,
                "version": system.version, "machine": system.machine,
            },
            "boot-info": {"mode": "efi" if Path("/sys/firmware/efi").exists() else "legacy-bios"},
            "pveversion": f"pve-manager/{self.version}/fakepve",
            "cpuinfo": cpuinfo(),
            "ksm": {"shared": 0},
            "memory": {
                "total": memory["MemTotal"], "free": memory["MemFree"], "available": memory["MemAvailable"],
                "used": memory["MemTotal"] - memory["MemAvailable"],
            },
            "swap": {
                "total": memory["SwapTotal"], "free": memory["SwapFree"],
                "used": memory["SwapTotal"] - memory["SwapFree"],
            },
            "rootfs": {
                "total": root.f_blocks * root.f_frsize, "free": root.f_bfree * root.f_frsize,
                "avail": root.f_bavail * root.f_frsize, "used": (root.f_blocks - root.f_bfree) * root.f_frsize,
            },
        }  # fmt: skip

    async def _nothing(self, v: dict[str, Any], user: str) -> list[Any]:
        return []

    async def _dns(self, v: dict[str, Any], user: str) -> dict[str, str]:
        lines = [line.split() for line in Path("/etc/resolv.conf").read_text().splitlines()]
        servers = [line[1] for line in lines if line[:1] == ["nameserver"] and len(line) > 1]
        return {f"dns{number}": server for number, server in enumerate(servers[:3], 1)}

    async def _cluster_options(self, v: dict[str, Any], user: str) -> dict[str, Any]:
        """GET /cluster/options: without Sys.Audit on / only what the account needs."""
        allowed = {"allowed-tags": sorted(self.allowed_tags(user))}
        if not self.allowed(user, "/", "Sys.Audit"):
            return allowed
        return {"mac_prefix": "BC:24:11", "description": "", **self.datacenter(), **allowed}

    async def _cluster_options_update(self, v: dict[str, Any], user: str) -> None:
        """PUT /cluster/options. Of the options those of tags have an effect; `next-id` is kept."""
        write_atomically(self.layout.datacenter, json.dumps(datacenter.changed(self.datacenter(), v)), 0o640)

    def _node_stats(self, online: bool) -> dict[str, Any]:
        memory, root = memory_bytes(), os.statvfs("/")
        return {
            "cpu": load(),
            "maxcpu": os.cpu_count() or 1,
            "mem": memory["MemTotal"] - memory["MemAvailable"],
            "maxmem": memory["MemTotal"],
            "disk": (root.f_blocks - root.f_bfree) * root.f_frsize,
            "maxdisk": root.f_blocks * root.f_frsize,
            "uptime": uptime(),
        }

    async def _nodes(self, request: web.Request) -> web.Response:
        """GET /nodes: whoever may not audit the node sees that it is there, and nothing of its use."""
        online = {"node": self.node, "id": f"node/{self.node}", "status": "online", "type": "node", "level": ""}
        stats = {}
        if self.allowed(request[USER], f"/nodes/{self.node}", "Sys.Audit"):
            stats = self._node_stats(online=True)
        return web.json_response({"data": [{**online, **stats, "ssl_fingerprint": shapes.FINGERPRINT}]})

    async def _cluster_status(self, request: web.Request) -> web.Response:
        """GET /cluster/status of a node that is in no cluster: itself."""
        self.check_request(request)
        node = {
            "type": "node", "id": f"node/{self.node}", "name": self.node, "nodeid": 0, "ip": "127.0.0.1",
            "online": 1, "local": 1, "level": "",
        }  # fmt: skip
        return web.json_response({"data": [node]})

    async def _resources(self, request: web.Request) -> web.Response:
        """GET /cluster/resources: what the user may see; of a node it may not audit, that it is there."""
        kind = self._verify(request, await params(request)).get("type")
        user = request[USER]
        data = self.ct_resources(user, kind)
        if kind in (None, "node"):
            data.append(self._node_resource(user))
        if kind in (None, "storage"):
            data += [
                self._storage_resource(self.node, name) for name in self.storages if self._can_audit(user, name)
            ]
        if kind in (None, "sdn") and self.allowed(user, "/sdn/zones/localnetwork", "SDN.Audit"):
            data.append({
                "id": f"network/{self.node}/zone/localnetwork", "type": "network", "network": "localnetwork",
                "network-type": "zone", "node": self.node, "status": "ok",
            })  # fmt: skip
        return web.json_response({"data": data})

    def _node_resource(self, user: str) -> dict[str, Any]:
        item = {
            "id": f"node/{self.node}", "type": "node", "node": self.node, "status": "online", "level": "",
            "cgroup-mode": 2 if self.cgroups.unified else 1,
        }  # fmt: skip
        if self.allowed(user, f"/nodes/{self.node}", "Sys.Audit"):
            item |= self._node_stats(online=True)
        return item


def memory_bytes() -> dict[str, int]:
    """/proc/meminfo."""
    lines = [line.split() for line in Path("/proc/meminfo").read_text().splitlines()]
    return {line[0].rstrip(":"): int(line[1]) * (1024 if line[2:] else 1) for line in lines}


def uptime() -> int:
    """Whole seconds since the machine started."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME))


def load() -> float:
    """How busy the CPUs are, from 0 to 1, by the load of the last minute."""
    return min(os.getloadavg()[0] / (os.cpu_count() or 1), 1.0)


def cpuinfo() -> dict[str, Any]:
    """The machine's CPUs as /nodes/{node}/status shows them."""
    lines = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
    fields = {name.strip(): value.strip() for name, _, value in lines}
    cpus = os.cpu_count() or 1
    flags = fields.get("flags", "")
    return {
        "cpus": cpus,
        "cores": int(fields.get("cpu cores", cpus)),
        "sockets": int(fields.get("physical id", 0)) + 1,
        "model": fields.get("model name", platform.machine()),
        "vendor": fields.get("vendor_id", "unknown"),
        "family": int(fields.get("cpu family", 0)),
        "mhz": float(fields.get("cpu MHz", 0)),
        "flags": flags,
        "hvm": "1" if {"vmx", "svm"} & set(flags.split()) else "",
        "user_hz": _CLOCK_TICKS,
    }
