# SPDX-License-Identifier: AGPL-3.0-or-later
"""From a CT's Proxmox config to LXC's own, as PVE::LXC::update_lxc_config writes it at every start. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pvecri_embedded.lxc.cgroup import CgroupTree, Limit
from pvecri_embedded.lxc.nics import Nic

ID_SHIFT = 100_000
ID_COUNT = 65_536
DEFAULT_TTYS = 2
SBIN_INIT = "/sbin/init"
_INCLUDES = Path("/usr/share/lxc/config")


def is_unprivileged(config: Mapping[str, Any]) -> bool:
    return bool(config.get("unprivileged"))


Lines = list[tuple[str, str]]


def render(
    vmid: int,
    config: Mapping[str, Any],
    nics: Iterable[Nic],
    rootfs: Path,
    cgroups: CgroupTree,
    hooks: Iterable[tuple[str, str]] = (),
) -> str:
    """LXC's config of the CT, in Proxmox's order; the raw ``lxc.*`` lines override what comes before them.

    ``hooks`` are the lines that name the CT's scripts.
    """
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
        *_network(nics),
        *hooks,
        *_environment(config),
        *((str(key), str(value)) for key, value in config.get("lxc", [])),
        *_limits(cgroups, filter(None, [cgroups.cpuset(int(config.get("cores") or 0), vmid)])),
    ]
    return "".join(f"{key} = {value}\n" for key, value in lines)


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
        # An init mounts it; without one nobody would.
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


def _network(nics: Iterable[Nic]) -> Lines:
    # Without any, LXC gives the CT a network namespace that holds only lo, down.
    lines: Lines = []
    for nic in nics:
        key = f"lxc.net.{nic.index}"
        lines += [(f"{key}.type", "veth"), (f"{key}.veth.pair", nic.host_name), (f"{key}.name", nic.name)]
        # A port of an Open vSwitch bridge is made with its VLAN at once, by the interface's script.
        port = {} if nic.on_ovs else {"link": nic.bridge, "veth.vlan.id": nic.vlan}
        optional = {**port, "hwaddr": nic.hwaddr, "mtu": nic.mtu, **_addresses(nic)}
        lines += [(f"{key}.{name}", str(value)) for name, value in optional.items() if value]
        if not nic.link_down:
            lines.append((f"{key}.flags", "up"))
    return lines


def _addresses(nic: Nic) -> dict[str, str]:
    """What the host sets itself. The addresses of other interfaces are for the record in an unmanaged CT."""
    if not nic.host_managed:
        return {}
    fixed = {
        "ipv4.address": nic.ip,
        "ipv4.gateway": nic.gateway,
        "ipv6.address": nic.ip6,
        "ipv6.gateway": nic.gateway6,
    }
    return {name: value for name, value in fixed.items() if value not in ("dhcp", "manual")}


def _environment(config: Mapping[str, Any]) -> Lines:
    # Proxmox's LXC has lxc.environment.runtime, which keeps the variables from the hooks. Others do not know it.
    return [("lxc.environment", entry) for entry in str(config.get("env") or "").split("\0") if entry]
