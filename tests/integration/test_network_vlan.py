# SPDX-License-Identifier: Apache-2.0
"""Pods in VLANs: Proxmox's interface on a bridge of Open vSwitch, whose trunk leads to another host's switch.

Network namespaces stand for the hosts: this one is the node; the other host has a machine in each VLAN.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from support.cri_client import CriClient, eventually, refused
from support.daemon import Machine
from support.lan import asking, link_up, pings, run_all
from support.machine_node import EmbeddedNode
from support.netns import network_namespace
from support.switch import PROGRAMS, Switch, running_switch

from pvecri_embedded.lxc import command_socket

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, PROGRAMS)), reason="needs Open vSwitch and ethtool (openvswitch-switch, ethtool)"
)

BRIDGE = "pvtovs"
POD, IN_20, IN_30 = "10.20.0.5", "10.20.0.20", "10.20.0.30"


@dataclass(frozen=True)
class Lan:
    """The node's switch, and a machine in each of two VLANs behind the other host's."""

    switch: Switch
    in_20: Path
    in_30: Path


@pytest.fixture
def lan(machine: Machine) -> Iterator[Lan]:
    """One subnet, two VLANs, a trunk between the switches of two hosts."""
    with ExitStack() as undo:
        other, in_20, in_30 = (undo.enter_context(network_namespace()) for _ in range(3))
        here = undo.enter_context(running_switch(machine.ovs_dir))
        there = undo.enter_context(running_switch(machine.directory / "other-ovs", other))
        link_up("pvttrunk", "trunk", other)
        undo.callback(run_all, "ip link del pvttrunk")
        here.add_bridge(BRIDGE)
        here.add_port(BRIDGE, "pvttrunk")
        there.add_bridge("lan")
        there.add_port("lan", "trunk")
        for tag, address, neighbour in ((20, IN_20, in_20), (30, IN_30, in_30)):
            run_all(f"ip link add port{tag} type veth peer name eth0 netns {neighbour.parts[2]}", inside=other)
            run_all(f"ip link set port{tag} up", inside=other)
            run_all("ip link set eth0 up", f"ip addr add {address}/24 dev eth0", inside=neighbour)
            there.add_port("lan", f"port{tag}", tag)
        yield Lan(here, in_20, in_30)


@pytest.fixture
def tagged(machine: Machine, embedded: EmbeddedNode, lan: Lan) -> Iterator[CriClient]:
    """A daemon whose pods may use the switch's bridge."""
    embedded.allow("KubeBridges", vmbr1=BRIDGE)
    with machine.restarted(network=f'pod_bridges = ["{BRIDGE}"]') as cri:
        yield cri


def test_pod_and_remote_machine_of_one_vlan_can_connect(tagged: CriClient, lan: Lan) -> None:
    pod = tagged.run_pod(asking(tagged, f"bridge={BRIDGE},tag=20,ip={POD}/24"))

    assert pings(lan.in_20, POD)
    assert "1 packets received" in tagged.finish(pod, "ping", "-c", "1", "-w", "10", IN_20)


def test_pod_and_machine_of_another_vlan_cannot_connect(tagged: CriClient, lan: Lan) -> None:
    pod = tagged.run_pod(asking(tagged, f"bridge={BRIDGE},tag=20,ip={POD}/24"))

    assert not pings(lan.in_30, POD, seconds=2)
    shown = tagged.finish(pod, "sh", "-c", f"ping -c 1 -W 2 {IN_30} || true")
    assert "0 packets received" in shown


def test_pods_of_two_vlans_on_one_bridge_cannot_connect(tagged: CriClient, lan: Lan) -> None:
    first = tagged.run_pod(asking(tagged, f"bridge={BRIDGE},tag=20,ip={POD}/24"))
    tagged.run_pod(asking(tagged, f"bridge={BRIDGE},tag=30,ip=10.20.0.6/24"))

    assert pings(lan.in_30, "10.20.0.6")
    assert not pings(lan.in_20, "10.20.0.6", seconds=2)
    assert "0 packets received" in tagged.finish(first, "sh", "-c", "ping -c 1 -W 2 10.20.0.6 || true")


def test_tcp_connection_works_between_hosts(machine: Machine, tagged: CriClient, lan: Lan) -> None:
    pod = tagged.run_pod(asking(tagged, f"bridge={BRIDGE},tag=20,ip={POD}/24"))
    init = machine.node.ct(tagged.vmid(pod), "status/current")["pid"]
    for sender in (Path(f"/proc/{init}/ns/net"), lan.in_20):
        run_all("ethtool -K eth0 tx off", inside=sender)  # a switch in user space adds no checksums
    tagged.run(pod, "sh", "-c", "while true; do echo hello | nc -l -p 8080; done")

    command = ["nsenter", f"--net={lan.in_20}", "busybox", "nc", "-w", "10", POD, "8080"]

    def answer() -> bytes:
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False).stdout

    assert eventually(answer, "the pod answers the other host") == b"hello\n"


def test_rate_limit_applies_on_open_vswitch(tagged: CriClient, lan: Lan) -> None:
    pod = tagged.run_pod(asking(tagged, f"bridge={BRIDGE},tag=20,ip={POD}/24,rate=2.5"))

    command = ["tc", "class", "show", "dev", f"veth{tagged.vmid(pod)}i0"]
    assert b"rate 20971Kbit" in subprocess.run(command, check=True, capture_output=True).stdout
    assert pings(lan.in_20, POD)


def test_removed_pod_leaves_no_switch_port(machine: Machine, tagged: CriClient, lan: Lan) -> None:
    pod = tagged.run_pod(asking(tagged, f"bridge={BRIDGE},tag=20,ip={POD}/24"))
    port = f"veth{tagged.vmid(pod)}i0"
    assert lan.switch.ask("get", "Port", port, "tag").strip() == "20"

    tagged.remove_pod(pod)

    eventually(lambda: lan.switch.ports(BRIDGE) == ["pvttrunk"], "the port is gone")


def test_ct_that_ends_without_the_api_leaves_no_switch_port(
    machine: Machine, embedded: EmbeddedNode, tagged: CriClient, lan: Lan
) -> None:
    pod = tagged.run_pod(asking(tagged, f"bridge={BRIDGE},tag=20,ip={POD}/24"))
    init = command_socket.init_pid(machine.lxc_path / str(tagged.vmid(pod)))
    assert init is not None
    embedded.stop()

    os.kill(init, signal.SIGKILL)

    eventually(lambda: lan.switch.ports(BRIDGE) == ["pvttrunk"], "the port is gone")
    embedded.start()


def test_ct_whose_monitor_is_killed_leaves_no_switch_port(machine: Machine, tagged: CriClient, lan: Lan) -> None:
    pod = tagged.run_pod(asking(tagged, f"bridge={BRIDGE},tag=20,ip={POD}/24"))
    monitor = command_socket.monitor_pid(machine.lxc_path / str(tagged.vmid(pod)))
    assert monitor is not None

    os.kill(monitor, signal.SIGKILL)

    eventually(lambda: lan.switch.ports(BRIDGE) == ["pvttrunk"], "the port is gone")


def test_proxmoxs_error_for_a_link_that_is_no_bridge_is_returned(
    machine: Machine, embedded: EmbeddedNode, tagged: CriClient
) -> None:
    embedded.allow("KubeBridges", vmbr1="lo")
    machine.restart(network='pod_bridges = ["lo"]')

    with refused(grpc.StatusCode.INTERNAL, "bridge 'lo' is neither a linux nor an OVS bridge!"):
        machine.client.run_pod(asking(machine.client, f"bridge=lo,ip={POD}/24"))

    assert machine.client.pods() == []
