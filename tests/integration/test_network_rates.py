# SPDX-License-Identifier: Apache-2.0
"""Bandwidth limits of pods: CNI's bandwidth plugin, and the `rate` of a Proxmox interface."""

from __future__ import annotations

import json
import subprocess

from support.daemon import Machine
from support.lan import asking, bridge_to_another_host
from support.machine_node import EmbeddedNode

BANDWIDTH: dict[str, object] = {"type": "bandwidth", "capabilities": {"bandwidth": True}}


def shaped() -> dict[str, int]:
    """The links of this host with a token bucket, and its rate in bits a second."""
    shown = subprocess.run(["tc", "-json", "qdisc", "show"], check=True, capture_output=True, text=True).stdout
    return {each["dev"]: each["options"]["rate"] * 8 for each in json.loads(shown) if each["kind"] == "tbf"}


def test_kubernetess_bandwidth_annotations_shape_a_pods_traffic_both_ways(machine: Machine) -> None:
    machine.write_network(BANDWIDTH)
    limits = {"ingress": "10M", "egress": "5M"}
    annotations = {f"kubernetes.io/{way}-bandwidth": rate for way, rate in limits.items()}

    pod = machine.client.run_pod(machine.client.pod_config(annotations=annotations))

    assert sorted(shaped().values()) == [5_000_000, 10_000_000]
    machine.client.stop_pod(pod)
    assert shaped() == {}


def test_a_pod_without_the_annotations_is_not_shaped(machine: Machine) -> None:
    machine.write_network(BANDWIDTH)

    machine.client.run_pod()

    assert shaped() == {}


def test_rate_of_a_proxmox_interface_is_set_on_its_veth(machine: Machine, embedded: EmbeddedNode) -> None:
    with bridge_to_another_host("pvtlan"):
        embedded.allow("KubeBridges", vmbr1="pvtlan")
        machine.restart(network='pod_bridges = ["pvtlan"]')
        pod = machine.client.run_pod(asking(machine.client, "bridge=pvtlan,ip=10.20.0.5/24,rate=2.5"))

        device = f"veth{machine.client.vmid(pod)}i0"
        command = ["tc", "class", "show", "dev", device]
        shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        machine.client.remove_pod(pod)
        machine.restart()
    assert "class htb 1:1 root" in shown
    assert "rate 20971Kbit" in shown
