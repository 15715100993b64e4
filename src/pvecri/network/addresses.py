# SPDX-License-Identifier: Apache-2.0
"""Addresses of a Proxmox interface: in a CT of ostype `unmanaged` Proxmox configures none itself."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import ipaddress
import socket
import struct
from pathlib import Path

from pvecri.errors import DeadlineExceeded, NotFound
from pvecri.linux import namespaces, programs
from pvecri.model import ProxmoxInterface

SIOCGIFADDR = 0x8915
IP_TIMEOUT = 30.0
DHCP = "dhcp"
AUTOMATIC = "auto"
PAUSE = 0.1
"""Seconds between polls for an address: a netlink socket is not worth it for a wait this short."""


def static_addresses(interface: ProxmoxInterface) -> tuple[str, ...]:
    """The configured addresses, with prefix length; IPv4 first. Pure."""
    return tuple(each for each in (interface.ip, interface.ip6) if each and each not in (DHCP, AUTOMATIC))


def commands(interface: ProxmoxInterface) -> list[str]:
    """Input of `ip -batch`, idempotent. Pure.

    `nodad`: an address cannot be bound while duplicate address detection runs, and the pod starts at once.
    """
    lines = [f"link set dev {interface.name} up"]
    for address in static_addresses(interface):
        detection = " nodad" if ":" in address else ""
        lines.append(f"address replace {address} dev {interface.name}{detection}")
    for gateway in filter(None, (interface.gateway, interface.gateway6)):
        target = "::/0" if ":" in gateway else "default"
        lines.append(f"route replace {target} via {gateway} dev {interface.name}")
    return lines


async def configure(netns: Path, interface: ProxmoxInterface) -> None:
    """Set an interface up with its static addresses and default routes. Idempotent.

    CommandError with ip(8)'s message.
    """
    await _run(netns, interface, commands(interface))


async def move(netns: Path, interface: ProxmoxInterface, pid: int) -> None:
    """Move an interface from a network namespace to that of process `pid`. CommandError with ip(8)'s message."""
    await _run(netns, interface, [f"link set dev {interface.name} netns {pid}"])


async def _run(netns: Path, interface: ProxmoxInterface, lines: list[str]) -> None:
    ended = await programs.run(
        ("nsenter", f"--net={netns}", "ip", "-batch", "-"),
        timeout=IP_TIMEOUT,
        name=f"ip for {interface.name} on {interface.bridge}",
        stdin="".join(f"{line}\n" for line in lines).encode(),
    )
    ended.checked()


async def wait_for_dhcp(netns: Path, interface: ProxmoxInterface, timeout: float) -> str:
    """The IPv4 address that the node's DHCP client sets on the interface, without its prefix length.

    DeadlineExceeded after `timeout` seconds, NotFound if the namespace does not exist.
    """
    try:
        # A socket belongs to the network namespace that it was made in: later ioctls need no setns(2).
        control = await asyncio.to_thread(namespaces.open_socket, netns, socket.AF_INET, socket.SOCK_DGRAM)
    except FileNotFoundError as error:
        raise NotFound(f"network namespace {netns} does not exist") from error
    with control:
        try:
            async with asyncio.timeout(timeout):
                while (address := _address(control, interface.name)) is None:
                    await asyncio.sleep(PAUSE)
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"DHCP on bridge {interface.bridge} gave {interface.name} no address within {timeout:g} s "
                "(network.plugin_timeout); Proxmox VE runs the client since version 9.1"
            ) from error
    return address


def _address(control: socket.socket, name: str) -> str | None:
    request = struct.pack("16sH22x", name.encode(), socket.AF_INET)
    try:
        answer = fcntl.ioctl(control, SIOCGIFADDR, request)
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:  # the interface has no IPv4 address yet
            raise
        return None
    # struct ifreq: 16 bytes of name, then struct sockaddr_in with the address at offset 4.
    return str(ipaddress.IPv4Address(answer[20:24]))
