# SPDX-License-Identifier: Apache-2.0
"""Pods with an address from another host's DHCP server, by Proxmox's client on the node."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from support.cri_client import CriClient, eventually
from support.daemon import Machine
from support.lan import asking, bridge_to_another_host, pings
from support.machine_node import EmbeddedNode
from support.processes import Program

from pvecri_embedded.lxc import command_socket

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("dnsmasq", "dhclient"))),
    reason="needs a DHCP server and a client (dnsmasq-base, isc-dhcp-client)",
)

LAN, SERVER = "pvtlan", "10.20.0.2"
FIRST, LAST = "10.20.0.100", "10.20.0.199"
CLASS = f'classes.lan = {{bridge = "{LAN}", ip = "dhcp"}}\npod_bridges = ["{LAN}"]'


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Path]:
    """The network namespace of another host on the bridge's LAN, which serves leases there and is the router."""
    with bridge_to_another_host(LAN, f"{SERVER}/24") as host:
        settings = (
            f"dhcp-range={FIRST},{LAST},2m dhcp-leasefile={tmp_path}/leases interface=trunk port=0 user=root"
        )
        flags = ["--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--log-facility=-", "--no-ping"]
        options = [*flags, "--bind-interfaces", *(f"--{each}" for each in settings.split())]
        program = Program(["nsenter", f"--net={host}", "dnsmasq", *options], tmp_path / "dnsmasq.log")
        program.start()
        try:
            yield host
        finally:
            program.end()


@pytest.fixture
def leased(machine: Machine, embedded: EmbeddedNode, server: Path) -> Iterator[CriClient]:
    """A daemon with a class whose pods have addresses of the server's."""
    embedded.allow("KubeBridges", vmbr1=LAN)
    with machine.restarted(network=CLASS) as cri:
        yield cri


def client_of(machine: Machine, pod: str) -> int:
    """The DHCP client of a pod, once it has gone to the background."""
    file = machine.lxc_path / str(machine.client.vmid(pod)) / "hook" / "dhclient4-eth0.pid"
    return int(eventually(lambda: file.exists() and file.read_text(), "the DHCP client has written its pid"))


def waiting_client(machine: Machine, vmid: int) -> int:
    """The DHCP client that asks for a lease for a CT; 0 when there is none."""
    mark = str(machine.lxc_path / str(vmid)).encode()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes()
            if words.startswith(b"/sbin/dhclient") and mark in words:
                return int(path.parent.name)
    return 0


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_pod_has_the_leased_address_and_is_reachable(leased: CriClient, server: Path) -> None:
    pod = leased.run_pod(asking(leased, **{"class": "lan"}))

    address = leased.pod_status(pod).network.ip
    assert IPv4Address(FIRST) <= IPv4Address(address) <= IPv4Address(LAST)
    assert pings(server, address)
    shown = leased.finish(pod, "sh", "-c", f"ip route; ping -c 1 -w 10 {SERVER}")
    assert f"default via {SERVER} dev eth0" in shown
    assert "1 packets received" in shown


def test_default_route_is_cnis_with_a_second_dhcp_interface(machine: Machine, leased: CriClient) -> None:
    pod = leased.run_pod(asking(leased, f"bridge={LAN},ip=dhcp,cni=1"))

    assert leased.pod_status(pod).network.ip.startswith("10.209.")
    assert "inet 10.20.0.1" in leased.finish(pod, "ip", "-4", "addr", "show", "eth1")
    netns = f"--net=/proc/{machine.node.ct(leased.vmid(pod), 'status/current')['pid']}/ns/net"
    way = subprocess.run(["nsenter", netns, *"ip route get 192.0.2.1".split()], check=True, capture_output=True)
    assert b"via 10.209.0.1 dev eth0" in way.stdout


def test_pod_can_have_a_lease_and_a_router_advertisement_address(leased: CriClient, server: Path) -> None:
    pod = leased.run_pod(asking(leased, f"bridge={LAN},ip=dhcp,ip6=auto"))

    assert pings(server, leased.pod_status(pod).network.ip)


def test_the_client_renews_the_lease_without_the_api_and_ends_with_the_pod(
    machine: Machine, embedded: EmbeddedNode, leased: CriClient
) -> None:
    pod = leased.run_pod(asking(leased, **{"class": "lan"}))
    client = client_of(machine, pod)
    embedded.stop()
    assert not gone(client)
    embedded.start()

    leased.remove_pod(pod)

    eventually(lambda: gone(client), "the DHCP client has ended")


def test_the_client_ends_with_a_ct_whose_monitor_is_killed(machine: Machine, leased: CriClient) -> None:
    pod = leased.run_pod(asking(leased, **{"class": "lan"}))
    client = client_of(machine, pod)
    monitor = command_socket.monitor_pid(machine.lxc_path / str(leased.vmid(pod)))
    assert monitor is not None

    os.kill(monitor, signal.SIGKILL)

    eventually(lambda: gone(client), "the DHCP client has ended")


def test_ct_without_a_lease_runs_and_its_start_task_warns(machine: Machine, embedded: EmbeddedNode) -> None:
    vmid = machine.vmids[-1]

    def starts() -> dict[str, str]:
        """Those that have ended."""
        return machine.node.tasks(vmid, "vzstart", source="archive")

    earlier = starts().keys()
    with bridge_to_another_host(LAN):
        embedded.make_ct(vmid, start=1, net0=f"name=eth0,bridge={LAN},ip=dhcp,host-managed=1")
        os.kill(eventually(lambda: waiting_client(machine, vmid), "the DHCP client waits"), signal.SIGKILL)

        eventually(lambda: starts().keys() - earlier, "the start has ended")
        ended = starts()
        assert [ended[upid] for upid in ended.keys() - earlier] == ["WARNINGS: 1"]
        assert machine.node.ct(vmid, "status/current")["status"] == "running"
        machine.node.remove_ct(vmid)
