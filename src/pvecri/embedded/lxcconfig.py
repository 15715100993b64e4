# SPDX-License-Identifier: AGPL-3.0-or-later
"""From a CT's Proxmox config to LXC's own, as PVE::LXC::update_lxc_config writes it at every start. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cgroup import CgroupTree, Limit

ID_SHIFT = 100_000
ID_COUNT = 65_536
DEFAULT_TTYS = 2
SBIN_INIT = "/sbin/init"
_INCLUDES = Path("/usr/share/lxc/config")


@dataclass(frozen=True)
class Nic:
    """One ``netN`` of a CT. ``host_name`` is the veth's end on the host."""

    index: int
    name: str
    bridge: str | None
    hwaddr: str | None
    mtu: int | None
    vlan: int | None
    link_down: bool
    host_name: str


def is_unprivileged(config: Mapping[str, Any]) -> bool:
    return bool(config.get("unprivileged"))


def nics(vmid: int, config: Mapping[str, Any]) -> list[Nic]:
    """The CT's ``netN`` options in order of their number."""
    found = sorted(int(key[3:]) for key in config if re.fullmatch(r"net\d+", key))
    return [_nic(vmid, index, str(config[f"net{index}"])) for index in found]


def _nic(vmid: int, index: int, value: str) -> Nic:
    options = dict(part.split("=", 1) for part in value.split(",") if "=" in part)
    return Nic(
        index=index,
        name=options.get("name", f"eth{index}"),
        bridge=options.get("bridge"),
        hwaddr=options.get("hwaddr"),
        mtu=int(options["mtu"]) if "mtu" in options else None,
        vlan=int(options["tag"]) if "tag" in options else None,
        link_down=options.get("link_down") == "1",
        host_name=f"veth{vmid}i{index}",
    )


def render(vmid: int, config: Mapping[str, Any], rootfs: Path, cgroups: CgroupTree) -> str:
    """LXC's config of the CT, in Proxmox's order; the raw ``lxc.*`` lines override what comes before them."""
    lines = [
        *_cgroup_layout(vmid),
        ("lxc.arch", str(config.get("arch", "amd64"))),
        *_includes(config),
        *_isolation(config),
        ("lxc.tty.max", str(_terminals(config))),
        ("lxc.environment", "TERM=linux"),
        ("lxc.uts.name", str(config.get("hostname") or f"CT{vmid}")),
        *_limits(cgroups, cgroups.limits(config)),
        ("lxc.rootfs.path", str(rootfs)),
        *_init(config),
        *_network(nics(vmid, config)),
        *_environment(config),
        *((str(key), str(value)) for key, value in config.get("lxc", [])),
        *_limits(cgroups, filter(None, [cgroups.cpuset(int(config.get("cores") or 0), vmid)])),
    ]
    return "".join(f"{key} = {value}\n" for key, value in lines)


Lines = list[tuple[str, str]]


def _cgroup_layout(vmid: int) -> Lines:
    return [
        ("lxc.cgroup.relative", "0"),
        ("lxc.cgroup.dir.monitor", f"lxc.monitor/{vmid}"),
        ("lxc.cgroup.dir.container", f"lxc/{vmid}"),
        ("lxc.cgroup.dir.container.inner", "ns"),
    ]


def _includes(config: Mapping[str, Any]) -> Lines:
    by_ostype = _INCLUDES / f"{config.get('ostype')}.common.conf"
    common = by_ostype if by_ostype.exists() else _INCLUDES / "common.conf"
    lines = [("lxc.include", str(common))]
    if is_unprivileged(config):
        lines.append(("lxc.include", str(_INCLUDES / "userns.conf")))
    return lines


def _isolation(config: Mapping[str, Any]) -> Lines:
    lines: Lines = []
    if is_unprivileged(config):
        lines.append(("lxc.mount.auto", "sys:mixed"))
    if str(config.get("entrypoint") or SBIN_INIT) != SBIN_INIT:
        lines.append(("lxc.mount.entry", "shm dev/shm tmpfs nosuid,nodev,mode=1777,create=dir 0 0"))
    if is_unprivileged(config):
        lines += [("lxc.idmap", f"{kind} 0 {ID_SHIFT} {ID_COUNT}") for kind in "ug"]
    return lines


def _terminals(config: Mapping[str, Any]) -> int:
    return int(config.get("tty", DEFAULT_TTYS))


def _limits(cgroups: CgroupTree, limits: Iterable[Limit]) -> Lines:
    return [(f"{cgroups.key_prefix}.{limit.file}", limit.value) for limit in limits]


def _init(config: Mapping[str, Any]) -> Lines:
    lines: Lines = []
    if str(config.get("console", 1)) == "0":
        lines.append(("lxc.console.path", "none"))
    if config.get("entrypoint"):
        lines.append(("lxc.init.cmd", str(config["entrypoint"])))
    return lines


def _network(interfaces: list[Nic]) -> Lines:
    # Without any, LXC gives the CT a network namespace that holds only lo, down.
    lines: Lines = []
    for nic in interfaces:
        key = f"lxc.net.{nic.index}"
        lines += [(f"{key}.type", "veth"), (f"{key}.veth.pair", nic.host_name), (f"{key}.name", nic.name)]
        optional = {"link": nic.bridge, "hwaddr": nic.hwaddr, "mtu": nic.mtu, "veth.vlan.id": nic.vlan}
        lines += [(f"{key}.{name}", str(value)) for name, value in optional.items() if value]
        if not nic.link_down:
            lines.append((f"{key}.flags", "up"))
    return lines


def _environment(config: Mapping[str, Any]) -> Lines:
    # Proxmox's LXC has lxc.environment.runtime, which keeps the variables from the hooks. Others do not know it.
    return [("lxc.environment", entry) for entry in str(config.get("env") or "").split("\0") if entry]
