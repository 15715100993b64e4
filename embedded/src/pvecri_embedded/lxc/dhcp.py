# SPDX-License-Identifier: AGPL-3.0-or-later
"""The node's DHCP client for an interface with ``host-managed=1,ip=dhcp``, as Proxmox VE runs it since 9.1.

It is a process of the host in the CT's network namespace, where it goes on to renew the lease, also when no API
process runs. The CT's post-stop hook kills it, as on a Proxmox node; the lease is not given back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

from pvecri_embedded.lxc.hooks import pid_file
from pvecri_embedded.lxc.monitor import Monitor
from pvecri_embedded.lxc.nics import Nic

DHCLIENT = "/sbin/dhclient"
SCRIPT = "/usr/share/lxc/hooks/dhclient-script"
"""LXC's own: it sets the address, the routes, and resolv.conf below $ROOTFS."""


class DhcpFailed(Exception):
    """No address was given; the text says by which command."""


def command(init_pid: int, directory: Path, nic: Nic) -> list[str]:
    """The client: it ends with an error when there is no lease, and goes to the background when there is. Pure."""
    inside = ["/usr/bin/nsenter", "--target", str(init_pid), "--net", "--uts", "--"]
    files = ["-pf", str(pid_file(directory, nic)), "-lf", str(directory / f"dhclient4-{nic.name}.leases")]
    return [*inside, DHCLIENT, "-1", "-4", *files, "-e", f"ROOTFS=/proc/{init_pid}/root", "-sf", SCRIPT, nic.name]


async def acquire(monitor: Monitor, directory: Path, nic: Nic) -> None:
    """Start the client and wait for the lease, at most as long as dhclient.conf says (60 s by default).

    DhcpFailed when none comes, or when the CT ends meanwhile.
    """
    assert monitor.init_pid is not None
    arguments = command(monitor.init_pid, directory, nic)
    null = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        *arguments, stdin=null, stdout=null, stderr=null, start_new_session=True
    )
    waiting = [asyncio.create_task(process.wait()), asyncio.create_task(monitor.ended())]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting[1].cancel()
        if process.returncode != 0:
            # The one that waits for the lease is a child, which leaves the session when it has it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await waiting[0]
    if process.returncode:
        raise DhcpFailed(f"command '{' '.join(arguments)}' failed: exit code {process.returncode}")
