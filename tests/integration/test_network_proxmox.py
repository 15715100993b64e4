# SPDX-License-Identifier: Apache-2.0
"""Pods with a Proxmox interface: a bridge to another host, in addition to CNI or instead of it."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from support.cri_client import CriClient, pod_security, refused
from support.daemon import Machine
from support.lan import asking, bridge_to_another_host, pings, run_all
from support.machine_node import EmbeddedNode

from pvecri.cri.proto import cri_pb2 as pb

LAN, UPLINK = "pvtlan", "pvtlan1"
CLASSES = """
pod_bridges = ["pvtlan"]
classes.lan = {bridge = "pvtlan", pod_addresses = true, firewall = true, firewall_rules = ["in DROP"]}
"""
ON_BRIDGE = "bridge=pvtlan,ip=10.20.0.5/24,gw=10.20.0.2,ip6=fd00:20::5/64,gw6=fd00:20::2"
HOST = ("10.20.0.2", "fd00:20::2")
"""The other host's addresses."""


@pytest.fixture
def other_host() -> Iterator[Path]:
    """A bridge on this host, whose uplink leads to another host."""
    with bridge_to_another_host(LAN, f"{HOST[0]}/24", f"{HOST[1]}/64") as path:
        yield path


@pytest.fixture
def vlan_host(other_host: Path) -> Path:
    """The other host, in VLAN 20 of a bridge that is VLAN-aware."""
    there = f"nsenter --net={other_host} "
    aware = subprocess.run(["ip", "link", "set", LAN, "type", "bridge", "vlan_filtering", "1"], check=False)
    if aware.returncode:
        pytest.skip("the kernel is built without VLANs on bridges (CONFIG_BRIDGE_VLAN_FILTERING)")
    run_all(
        f"bridge vlan add dev {UPLINK} vid 20",
        f"{there}ip addr flush dev trunk",
        f"{there}ip link add link trunk name trunk.20 type vlan id 20",
        f"{there}ip addr add {HOST[0]}/24 dev trunk.20",
        f"{there}ip link set trunk.20 up",
    )
    return other_host


@pytest.fixture
def bridged(machine: Machine, embedded: EmbeddedNode, other_host: Path) -> Iterator[CriClient]:
    """A daemon that knows the bridge and a class on it."""
    embedded.allow("KubeBridges", vmbr1=LAN)
    with machine.restarted(network=CLASSES) as cri:
        yield cri


def test_pod_on_a_bridge_and_another_host_can_connect_by_ipv4_and_ipv6(
    bridged: CriClient, other_host: Path
) -> None:
    pod = bridged.run_pod(asking(bridged, ON_BRIDGE))

    network = bridged.pod_status(pod).network
    assert (network.ip, [each.ip for each in network.additional_ips]) == ("10.20.0.5", ["fd00:20::5"])
    assert pings(other_host, "10.20.0.5")
    assert pings(other_host, "fd00:20::5")
    shown = bridged.finish(pod, "sh", "-c", f"ip route; ping -c 1 -w 10 {HOST[0]}")
    assert f"default via {HOST[0]} dev eth0" in shown
    assert "1 packets received" in shown


def test_pod_can_connect_only_within_its_vlan(bridged: CriClient, vlan_host: Path) -> None:
    bridged.run_pod(asking(bridged, "bridge=pvtlan,tag=20,ip=10.20.0.5/24"))
    bridged.run_pod(asking(bridged, "bridge=pvtlan,tag=30,ip=10.20.0.6/24"))

    assert pings(vlan_host, "10.20.0.5")
    assert not pings(vlan_host, "10.20.0.6")


def test_interface_is_in_the_cts_config(machine: Machine, bridged: CriClient) -> None:
    pod = bridged.run_pod(asking(bridged, f"{ON_BRIDGE},rate=5,hwaddr=02:00:00:00:20:05"))

    shown = str(machine.node.ct(bridged.vmid(pod), "config")["net0"]).split(",")
    wanted = {"name=eth0", "bridge=pvtlan", "rate=5", "hwaddr=02:00:00:00:20:05", "ip=10.20.0.5/24"}
    assert wanted <= set(shown)
    assert "02:00:00:00:20:05" in bridged.finish(pod, "cat", "/sys/class/net/eth0/address")


def test_pod_can_have_cni_and_a_proxmox_interface(bridged: CriClient, other_host: Path) -> None:
    pod = bridged.run_pod(asking(bridged, "bridge=pvtlan,ip=10.20.0.6/24,cni=1"))

    assert bridged.pod_status(pod).network.ip.startswith("10.209.")
    assert "10.20.0.6/24" in bridged.finish(pod, "ip", "-4", "-o", "addr", "show", "eth1")
    assert pings(other_host, "10.20.0.6")


def test_pod_with_mappings_of_the_kubelet_has_the_interface(bridged: CriClient, other_host: Path) -> None:
    config = asking(bridged, ON_BRIDGE)
    ids = pb.IDMapping(container_id=0, host_id=3_000_000, length=65_536)
    users = pb.UserNamespace(mode=pb.POD, uids=[ids], gids=[ids])
    config.linux.CopyFrom(pod_security(namespace_options=pb.NamespaceOption(userns_options=users)))

    pod = bridged.run_pod(config)

    assert pings(other_host, "10.20.0.5")
    bridged.stop_pod(pod)
    assert not [name for _, name in socket.if_nameindex() if name.startswith("veth")]


def test_pod_with_a_proxmox_interface_needs_no_cni_network(machine: Machine, bridged: CriClient) -> None:
    (machine.conf_dir / "10-pvt.conflist").unlink()

    pod = bridged.run_pod(asking(bridged, ON_BRIDGE))
    bridged.stop_pod(pod)

    assert bridged.pod_status(pod).state == pb.SANDBOX_NOTREADY


def test_firewall_rules_of_a_pod_are_in_proxmox_in_order(machine: Machine, bridged: CriClient) -> None:
    interface = "bridge=pvtlan,ip=10.20.0.7/24,firewall=1"
    rules = "in ACCEPT proto=tcp dport=80,443\nin DROP source=10.0.0.0/8"
    pod = bridged.run_pod(asking(bridged, interface, firewall="policy_in=REJECT", firewall_rules=rules))

    path = f"/nodes/{machine.node.name}/lxc/{bridged.vmid(pod)}/firewall"
    listed = machine.node.request("GET", f"{path}/rules")
    assert isinstance(listed, list)
    shown = [(each["type"], each["action"], each.get("dport"), each.get("source")) for each in listed]
    assert shown == [("in", "ACCEPT", "80,443", None), ("in", "DROP", None, "10.0.0.0/8")]
    options = machine.node.request("GET", f"{path}/options")
    assert isinstance(options, dict)
    assert (options["enable"], options["policy_in"]) == (1, "REJECT")
    assert "firewall=1" in str(machine.node.ct(bridged.vmid(pod), "config")["net0"])


def test_pod_of_a_class_has_its_bridge_and_firewall(
    machine: Machine, bridged: CriClient, other_host: Path
) -> None:
    config = asking(bridged, "ip=10.20.0.8/24", **{"class": "lan"})
    vmid = bridged.vmid(bridged.run_pod(config))

    assert {"bridge=pvtlan", "firewall=1"} <= set(str(machine.node.ct(vmid, "config")["net0"]).split(","))
    rules = machine.node.request("GET", f"/nodes/{machine.node.name}/lxc/{vmid}/firewall/rules")
    assert isinstance(rules, list)
    assert [each["action"] for each in rules] == ["DROP"]
    assert pings(other_host, "10.20.0.8")  # the embedded node keeps the rules, and filters nothing


def test_vlan_tag_is_in_the_cts_config(machine: Machine, bridged: CriClient) -> None:
    """On a bridge that has none, which the embedded node says after it has made the CT."""
    with refused(grpc.StatusCode.INTERNAL, "bridge 'pvtlan' is not VLAN-aware"):
        bridged.run_pod(asking(bridged, "bridge=pvtlan,tag=20,ip=10.20.0.5/24"))

    machine.assert_nothing_left()


def test_forbidden_annotation_is_refused_before_a_ct_is_created(machine: Machine, bridged: CriClient) -> None:
    with refused(
        grpc.StatusCode.INVALID_ARGUMENT, r"network\.pvecri\.io/interface\]: pods may not choose bridge 'vmbr0'"
    ):
        bridged.run_pod(asking(bridged, "bridge=vmbr0,ip=10.20.0.5/24"))

    config = asking(bridged, ON_BRIDGE)
    config.linux.CopyFrom(pod_security(namespace_options=pb.NamespaceOption(network=pb.NODE)))
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "cannot be combined with the node's network"):
        bridged.run_pod(config)

    machine.assert_nothing_left()


def test_proxmoxs_error_for_a_missing_bridge_is_returned(machine: Machine, bridged: CriClient) -> None:
    subprocess.run(["ip", "link", "del", LAN], check=True)

    with refused(grpc.StatusCode.INTERNAL, f"bridge '{LAN}' does not exist"):
        bridged.run_pod(asking(bridged, ON_BRIDGE))

    machine.assert_nothing_left()
