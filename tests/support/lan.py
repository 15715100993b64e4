# SPDX-License-Identifier: Apache-2.0
"""What tests of pods on a bridge, or on a switch that leads to another host, would otherwise repeat."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.cri_client import CriClient
from support.netns import network_namespace

from pvecri.cri.proto import cri_pb2 as pb


def run_all(*commands: str, inside: Path | None = None) -> None:
    """Run these, in this network namespace or another."""
    prefix = [] if inside is None else ["nsenter", f"--net={inside}"]
    for command in commands:
        subprocess.run([*prefix, *command.split()], check=True, stdout=subprocess.DEVNULL)


def link_up(name: str, peer: str, inside: Path) -> None:
    """A veth pair, both ends up: `name` here, `peer` in another network namespace (/proc/PID/ns/net)."""
    run_all(f"ip link add {name} type veth peer name {peer} netns {inside.parts[2]}", f"ip link set {name} up")
    run_all(f"ip link set {peer} up", inside=inside)


@contextmanager
def bridge_to_another_host(bridge: str, *addresses: str) -> Iterator[Path]:
    """A bridge on this host, and another host on its uplink: the host's network namespace.

    Its `trunk` has the addresses (with prefix length).
    """
    with network_namespace() as there:
        try:
            run_all(f"ip link add {bridge} type bridge")
            link_up(f"{bridge}1", "trunk", there)
            run_all(f"ip link set {bridge}1 master {bridge}", f"ip link set {bridge} up")
            for address in addresses:
                detection = " nodad" if ":" in address else ""
                run_all(f"ip addr add {address} dev trunk{detection}", inside=there)
            yield there
        finally:
            subprocess.run(["ip", "link", "del", f"{bridge}1"], check=False)
            subprocess.run(["ip", "link", "del", bridge], check=False)


def pings(host: Path, address: str, seconds: int = 10) -> bool:
    """Whether a host, by its network namespace, reaches an address within these seconds."""
    family = "-6" if ":" in address else "-4"
    command = ["nsenter", f"--net={host}", "busybox", "ping", family, "-c", "1", "-W", str(seconds), address]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def asking(cri: CriClient, interface: str = "", **annotations: str) -> pb.PodSandboxConfig:
    """A pod with these annotations, by the part of their name behind `network.pvecri.io/`."""
    given = {**annotations, **({"interface": interface} if interface else {})}
    named = {f"network.pvecri.io/{name.replace('_', '-')}": value for name, value in given.items()}
    return cri.pod_config(annotations=named)
