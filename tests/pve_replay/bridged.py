# SPDX-License-Identifier: AGPL-3.0-or-later
"""``python -m pve_replay.bridged VMID``: what is seen of a CT on a bridge, as JSON.

To be run in a network and a mount namespace of its own.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from support.leaks import PREFIX

from .process import NodeProcess, new_state_dir
from .sandbox_template import write_template

_SETUP = (
    # LXC finds bridges in /sys, which has to be this network namespace's, with the cgroups where they were.
    "mount --rbind /sys/fs/cgroup {aside}",
    "mount -t sysfs sysfs /sys",
    "mount --rbind {aside} /sys/fs/cgroup",
    "ip link set lo up",
    "ip link add vmbr0 type bridge",
    "ip link set vmbr0 up",
)


def _run(command: str) -> str:
    return subprocess.run(command.split(), check=True, capture_output=True, text=True).stdout


def _ports() -> list[str]:
    return [link["ifname"] for link in json.loads(_run("ip -json link show master vmbr0") or "[]")]


async def look(vmid: int) -> dict[str, Any]:
    """What is seen of a CT with a nic on vmbr0, from the API and from the bridge."""
    path = f"/nodes/pve/lxc/{vmid}"
    with new_state_dir() as state_dir:
        async with NodeProcess(state_dir) as node:
            await node.upload(write_template(state_dir / "sandbox_1.0.tar.gz"))
            parameters = {
                "vmid": vmid,
                "ostemplate": "local:vztmpl/sandbox_1.0.tar.gz",
                "rootfs": "local:0",
                "net0": "name=eth0,bridge=vmbr0,hwaddr=BC:24:11:00:00:01",
            }
            await node.task("POST", "/nodes/pve/lxc", parameters)
            await node.task("POST", f"{path}/status/start")
            interfaces = await node.get(f"{path}/interfaces")
            seen = {
                "names": [interface["name"] for interface in interfaces],
                "hwaddr": interfaces[-1]["hwaddr"],
                "ports of vmbr0": _ports(),
            }
            await node.task("POST", f"{path}/status/stop")
            return {**seen, "ports after the stop": _ports()}


def main() -> None:
    aside = Path(tempfile.mkdtemp(prefix=f"{PREFIX}bridged-"))
    try:
        for command in _SETUP:
            _run(command.format(aside=aside))
        _run(f"umount --lazy {aside}")
    finally:
        # Never a removal with all below it: cgroups may still be mounted there.
        aside.rmdir()
    sys.stdout.write(json.dumps(asyncio.run(look(int(sys.argv[1])))))


if __name__ == "__main__":
    main()
