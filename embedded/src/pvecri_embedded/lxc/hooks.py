# SPDX-License-Identifier: AGPL-3.0-or-later
"""The scripts that LXC runs for a CT's interfaces: on their way up, and after the CT has ended.

They are what lxcnetaddbr and lxc-pve-poststop-hook are on a Proxmox node. LXC's monitor runs them, so they also
do their work when a CT restarts or ends while no API process runs.
"""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path

from pvecri_embedded.lxc.nics import OVS_TIMEOUT_S, OVS_VSCTL, Nic

DIRECTORY = "hook"
"""Where a CT's scripts are, below LXC's directory for it."""
POST_STOP = "lxc.hook.post-stop"
RATE_UNIT = RATE_BURST = 1024 * 1024
"""Bytes: Proxmox's rates are in MB/s of 2**20, and so much may come at once."""

_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_TIMEOUT_S = 60
_logger = logging.getLogger(__name__)


def pid_file(directory: Path, nic: Nic) -> Path:
    """Where the DHCP client of an interface writes its pid."""
    return directory / f"dhclient4-{nic.name}.pid"


def scripts(nics: list[Nic], directory: Path) -> dict[str, str]:
    """The shell scripts of a CT by their key in LXC's config; none for a CT that needs none. Pure.

    ``directory`` is where the DHCP clients' files lie.
    """
    ups = {f"lxc.net.{nic.index}.script.up": [*_plug(nic), *_limit(nic)] for nic in nics}
    made = {**ups, POST_STOP: [line for nic in nics for line in _clean_up(nic, directory)]}
    return {key: "\n".join(["set -e", *lines, ""]) for key, lines in made.items() if lines}


def write(texts: Mapping[str, str], directory: Path) -> list[tuple[str, str]]:
    """Write a CT's scripts and return the lines of LXC's config that name them. Those of earlier starts go.

    Leases stay, so that a CT that starts again asks for the address it had.
    """
    directory.mkdir(exist_ok=True)
    for old in (*directory.glob("lxc.*"), *directory.glob("*.pid")):
        old.unlink()
    prologue = ["#!/bin/sh", f"export PATH={_PATH}"]
    if where := os.environ.get("OVS_RUNDIR"):  # Open vSwitch's own variable: another switch than the system's
        prologue.append(f"export OVS_RUNDIR={shlex.quote(where)}")
    lines = []
    for key, text in texts.items():
        path = directory / key
        path.write_text("\n".join([*prologue, text]))
        path.chmod(0o755)
        lines.append((key, str(path)))
    return lines


def run_post_stop(directory: Path) -> None:
    """Do what LXC would have done at the CT's end, had its monitor not been killed. Idempotent."""
    script = directory / POST_STOP
    if script.exists():
        try:
            subprocess.run([script], stdin=subprocess.DEVNULL, check=False, timeout=_TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired):
            _logger.exception("%s", script)


def _plug(nic: Nic) -> list[str]:
    """Make the veth a port of an Open vSwitch bridge, which LXC does by itself on a Linux bridge."""
    if not nic.on_ovs or nic.link_down:
        return []
    tag = f" tag={nic.vlan}" if nic.vlan else ""
    sysctl = f"/proc/sys/net/ipv6/conf/{nic.host_name}/disable_ipv6"
    return [
        f"if [ -e {sysctl} ]; then echo 1 >{sysctl}; fi",  # the host is no part of the CT's network
        f"{_vsctl(nic)} -- add-port {nic.bridge} {nic.host_name}{tag}"
        f" -- set Interface {nic.host_name} mtu_request={nic.mtu}",
    ]


def _limit(nic: Nic) -> list[str]:
    """What comes out of the veth goes to the CT, what goes in comes from it."""
    if not nic.rate:
        return []
    device, rate = nic.host_name, f"rate {int(nic.rate * RATE_UNIT)}bps burst {RATE_BURST}b"
    police = f"tc filter add dev {device} parent ffff: prio 50 basic police {rate} mtu 64kb drop"
    return [
        f"tc qdisc add dev {device} root handle 1: htb default 1",
        f"tc class add dev {device} parent 1: classid 1:1 htb {rate}",
        f"tc qdisc add dev {device} handle ffff: ingress",
        # Kernels without cls_basic or act_police, which Proxmox's have, limit one direction only.
        f"{police} || true",
    ]


def _clean_up(nic: Nic, directory: Path) -> list[str]:
    lines = []
    if nic.by_dhcp:
        file = shlex.quote(str(pid_file(directory, nic)))
        lines.append(f'if read -r pid <{file}; then kill -9 "$pid" || true; rm -f {file}; fi 2>/dev/null')
    if nic.on_ovs and not nic.link_down:
        lines.append(_vsctl(nic))
    return lines


def _vsctl(nic: Nic) -> str:
    """A port of that name may be left from a host that went down."""
    return f"{OVS_VSCTL} --timeout={OVS_TIMEOUT_S} -- --if-exists del-port {nic.host_name}"
