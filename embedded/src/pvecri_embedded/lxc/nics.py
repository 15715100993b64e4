# SPDX-License-Identifier: AGPL-3.0-or-later
"""The ``netN`` options of a CT, and the bridges they name. Proxmox: PVE::LXC::parse_lxc_network, PVE::Network."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fakepve import TaskError

OVS_VSCTL = "/usr/bin/ovs-vsctl"
OVS_TIMEOUT_S = 10
"""How long Open vSwitch may take over a change: ovs-vsctl waits until the switch has made it."""

_SYSFS = Path("/sys/class/net")
_NO_SUCH_BRIDGE = 2


@dataclass(frozen=True)
class Nic:
    """One ``netN`` of a CT. ``host_name`` is the veth's end on the host."""

    index: int
    name: str
    bridge: str | None
    hwaddr: str | None
    mtu: int | None
    vlan: int | None
    rate: float
    """MB/s (2**20 bytes); 0 is unlimited."""
    link_down: bool
    host_managed: bool
    """Whether the host sees to its addresses."""
    ip: str
    gateway: str
    ip6: str
    gateway6: str
    host_name: str
    on_ovs: bool = False
    """Whether the bridge is Open vSwitch's; `plugged` finds out."""

    @property
    def by_dhcp(self) -> bool:
        """Whether a DHCP client of the host gives it its IPv4 address."""
        return self.host_managed and self.ip == "dhcp"


def parse(vmid: int, config: Mapping[str, Any]) -> list[Nic]:
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
        rate=float(options.get("rate", 0)),
        link_down=options.get("link_down") == "1",
        host_managed=options.get("host-managed") == "1" and options.get("link_down") != "1",
        ip=options.get("ip", ""),
        gateway=options.get("gw", ""),
        ip6=options.get("ip6", ""),
        gateway6=options.get("gw6", ""),
        host_name=f"veth{vmid}i{index}",
    )


async def plugged(nics: list[Nic]) -> list[Nic]:
    """The interfaces as their bridges make them: on a Linux bridge, or on one of Open vSwitch with its MTU.

    TaskError for a bridge that is not there or cannot do what is asked, as far as it goes in Proxmox's words.
    """
    return [await _plugged(nic) for nic in nics]


async def _plugged(nic: Nic) -> Nic:
    if nic.host_managed and nic.ip6 == "auto":
        raise TaskError(f"net{nic.index}: SLAAC is not supported for host-managed network configuration")
    if nic.bridge is None:
        return nic
    device = _SYSFS / nic.bridge
    if not device.exists():
        raise TaskError(f"bridge '{nic.bridge}' does not exist")
    if not (device / "bridge").exists():
        if not await _is_of_ovs(nic.bridge):
            raise TaskError(f"bridge '{nic.bridge}' is neither a linux nor an OVS bridge!")
        return replace(nic, on_ovs=True, mtu=nic.mtu or int((device / "mtu").read_text()))
    if nic.vlan and not _is_vlan_aware(device):
        # Proxmox would make a bridge for the VLAN; see docs/embedded-node.md.
        raise TaskError(f"bridge '{nic.bridge}' is not VLAN-aware")
    return nic


def _is_vlan_aware(device: Path) -> bool:
    filtering = device / "bridge" / "vlan_filtering"
    return filtering.exists() and filtering.read_text().strip() == "1"


async def _is_of_ovs(bridge: str) -> bool:
    if not Path(OVS_VSCTL).exists():
        return False
    process = await asyncio.create_subprocess_exec(
        *(OVS_VSCTL, f"--timeout={OVS_TIMEOUT_S}", "br-exists", bridge),
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await process.communicate()
    if process.returncode not in (0, _NO_SUCH_BRIDGE):
        words = said.decode(errors="replace").strip()
        raise TaskError(f"failed to query OVS to determine type of '{bridge}': {words}")
    return process.returncode == 0
