# SPDX-License-Identifier: Apache-2.0
"""A pod's network: addresses, host ports, DNS, hostname, sysctls."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator

import grpc
import pytest
from support.cri_client import CriClient, eventually, pod_security, refused
from support.daemon import SUBNET, Machine
from support.netns import network_namespace

from pvecri.cri.proto import cri_pb2 as pb

HOST_NETWORK = pod_security(namespace_options=pb.NamespaceOption(network=pb.NODE))
SERVE = "while true; do echo hello | nc -l -p 8080; done"
PORT = 18_080


def read_from(address: str, port: int) -> str:
    """What a server sends before it closes; nothing while there is none."""
    try:
        with socket.create_connection((address, port), timeout=10) as connection:
            return connection.recv(100).decode()
    except OSError:
        return ""


@pytest.fixture
def other_node() -> Iterator[list[str]]:
    """The command prefix that runs a program on another node, which reaches this one at 10.208.0.1."""
    with network_namespace() as path:
        commands = (
            f"ip link add pvtpeer type veth peer name pvtnode netns {path.parts[2]}",
            "ip addr add 10.208.0.1/24 dev pvtpeer",
            "ip link set pvtpeer up",
            f"nsenter --net={path} ip addr add 10.208.0.2/24 dev pvtnode",
            f"nsenter --net={path} ip link set pvtnode up",
        )
        for command in commands:
            subprocess.run(command.split(), check=True)
        yield ["nsenter", f"--net={path}", "busybox"]
        subprocess.run(["ip", "link", "del", "pvtpeer"], check=True)


def test_status_has_the_pods_address(cri: CriClient) -> None:
    pod = cri.run_pod()
    shown = cri.finish(pod, "ip", "-4", "-o", "addr", "show", "eth0")
    assert f" {cri.pod_status(pod).network.ip}/16 " in shown


def test_lo_is_up(cri: CriClient) -> None:
    assert "127.0.0.1/8" in cri.finish(cri.run_pod(), "ip", "-4", "-o", "addr", "show", "lo", "up")


def test_pods_can_connect_to_each_other(cri: CriClient) -> None:
    server, client = cri.run_pod(), cri.run_pod()
    cri.run(server, "sh", "-c", SERVE)
    address = cri.pod_status(server).network.ip
    script = f"until nc -w 5 {address} 8080; do usleep 10000; done"
    assert cri.finish(client, "sh", "-c", script) == "hello\n"


def test_containers_of_a_pod_share_loopback(cri: CriClient) -> None:
    pod = cri.run_pod()
    cri.run(pod, "sh", "-c", SERVE, name="server")
    script = "until nc -w 5 127.0.0.1 8080; do usleep 10000; done"
    assert cri.finish(pod, "sh", "-c", script) == "hello\n"


def test_host_port_is_reachable_from_the_node_and_from_other_hosts(cri: CriClient, other_node: list[str]) -> None:
    mapping = pb.PortMapping(container_port=8080, host_port=PORT)
    pod = cri.run_pod(cri.pod_config(port_mappings=[mapping]))
    cri.run(pod, "sh", "-c", SERVE)
    assert eventually(lambda: read_from("127.0.0.1", PORT), "the pod answers on loopback") == "hello\n"
    command = [*other_node, "nc", "-w", "10", "10.208.0.1", str(PORT)]

    def answer() -> str:
        return subprocess.run(
            command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        ).stdout

    assert eventually(answer, "the pod answers the other node") == "hello\n"
    cri.stop_pod(pod)
    assert read_from("127.0.0.1", PORT) == ""


def test_pod_and_another_node_can_connect_over_routes(cri: CriClient, other_node: list[str]) -> None:
    pod = cri.run_pod()
    subprocess.run([*other_node, "ip", "route", "add", SUBNET, "via", "10.208.0.1"], check=True)

    address = cri.pod_status(pod).network.ip
    subprocess.run([*other_node, "ping", "-c", "1", "-w", "10", address], check=True, stdout=subprocess.DEVNULL)
    assert "1 packets received" in cri.finish(pod, "ping", "-c", "1", "-w", "10", "10.208.0.2")


def test_host_port_of_another_pod_is_refused_before_a_ct_is_created(cri: CriClient) -> None:
    holder = cri.run_pod(
        cri.pod_config("holder", port_mappings=[pb.PortMapping(container_port=1, host_port=PORT)])
    )
    wanted = pb.PortMapping(container_port=2, host_port=PORT, host_ip="127.0.0.1")

    with refused(
        grpc.StatusCode.ALREADY_EXISTS, rf"tcp 127\.0\.0\.1:{PORT} is taken by pod .*holder \({holder}\)"
    ):
        cri.run_pod(cri.pod_config("other", port_mappings=[wanted]))

    assert [pod.id for pod in cri.pods()] == [holder]
    cri.stop_pod(holder)
    cri.run_pod(cri.pod_config("other", port_mappings=[wanted]))


def test_two_pods_can_have_the_udp_and_tcp_port_of_one_number(cri: CriClient) -> None:
    for name, protocol in (("tcp", pb.TCP), ("udp", pb.UDP), ("sctp", pb.SCTP)):
        mapping = pb.PortMapping(protocol=protocol, container_port=8080, host_port=PORT)
        cri.run_pod(cri.pod_config(name, port_mappings=[mapping]))


def test_pod_with_the_nodes_network_listens_on_the_node(cri: CriClient) -> None:
    pod = cri.run_pod(cri.pod_config(linux=HOST_NETWORK))
    cri.run(pod, "sh", "-c", SERVE)
    assert eventually(lambda: read_from("127.0.0.1", 8080), "the pod answers") == "hello\n"
    assert cri.pod_status(pod).network.ip == ""


def test_resolv_conf_has_the_requested_dns_configuration(cri: CriClient) -> None:
    dns = pb.DNSConfig(servers=["10.96.0.10"], searches=["a.svc", "b.svc"], options=["ndots:5"])
    pod = cri.run_pod(cri.pod_config(dns_config=dns))
    shown = cri.finish(pod, "cat", "/etc/resolv.conf").splitlines()
    assert {"nameserver 10.96.0.10", "search a.svc b.svc", "options ndots:5"} <= set(shown)


def test_hostname_resolves_and_is_in_etc_hosts_and_etc_hostname(cri: CriClient) -> None:
    pod = cri.run_pod(cri.pod_config(hostname="web-0"))
    ip = cri.pod_status(pod).network.ip
    hostname, in_file, hosts = cri.finish(
        pod, "sh", "-c", "hostname; cat /etc/hostname; grep web-0 /etc/hosts"
    ).splitlines()
    assert (hostname, in_file) == ("web-0", "web-0")
    assert hosts.split()[0] == ip


def test_a_pod_on_the_nodes_network_has_the_nodes_hostname(cri: CriClient) -> None:
    pod = cri.run_pod(cri.pod_config(linux=HOST_NETWORK))
    assert cri.finish(pod, "sh", "-c", "hostname; cat /etc/hostname").split() == [socket.gethostname()] * 2


def test_sysctls_are_set_before_the_first_container(cri: CriClient) -> None:
    sysctls = {"net.ipv4.ip_local_port_range": "20000 30000", "kernel.shm_rmid_forced": "1"}
    pod = cri.run_pod(cri.pod_config(linux=pb.LinuxPodSandboxConfig(sysctls=sysctls)))
    paths = ["/proc/sys/net/ipv4/ip_local_port_range", "/proc/sys/kernel/shm_rmid_forced"]
    assert cri.finish(pod, "cat", *paths).split() == ["20000", "30000", "1"]


def test_node_level_sysctl_is_refused_before_a_ct_is_created(machine: Machine, cri: CriClient) -> None:
    linux = pb.LinuxPodSandboxConfig(sysctls={"kernel.panic": "1"})
    with refused(grpc.StatusCode.INVALID_ARGUMENT, r"config\.linux\.sysctls\[kernel\.panic\]"):
        cri.run_pod(cri.pod_config(linux=linux))
    machine.assert_nothing_left()


def test_invalid_sysctl_value_fails_the_pod_and_leaves_nothing(machine: Machine, cri: CriClient) -> None:
    sysctls = {"net.ipv4.ip_local_port_range": "20000 30000", "net.ipv4.ip_forward": "many"}
    refusal = r"^config\.linux\.sysctls\[net\.ipv4\.ip_forward\]: the kernel refuses 'many': Invalid argument$"
    with refused(grpc.StatusCode.INVALID_ARGUMENT, refusal):
        cri.run_pod(cri.pod_config(linux=pb.LinuxPodSandboxConfig(sysctls=sysctls)))
    machine.assert_nothing_left()


def test_sysctls_of_an_interface_are_set_once_it_is_there(cri: CriClient) -> None:
    sysctls = {"net.ipv4.conf.eth0.rp_filter": "2", "net/ipv4/neigh/eth0/ucast_solicit": "7"}
    pod = cri.run_pod(cri.pod_config(linux=pb.LinuxPodSandboxConfig(sysctls=sysctls)))
    paths = ["/proc/sys/net/ipv4/conf/eth0/rp_filter", "/proc/sys/net/ipv4/neigh/eth0/ucast_solicit"]
    assert cri.finish(pod, "cat", *paths).split() == ["2", "7"]


def test_sysctl_of_an_interface_that_the_pod_lacks_undoes_the_pod(machine: Machine, cri: CriClient) -> None:
    sysctls = {"net.ipv4.conf.eth9.rp_filter": "2"}
    refusal = r"^config\.linux\.sysctls\[net\.ipv4\.conf\.eth9\.rp_filter\]: .*No such file or directory$"
    with refused(grpc.StatusCode.INVALID_ARGUMENT, refusal):
        cri.run_pod(cri.pod_config(linux=pb.LinuxPodSandboxConfig(sysctls=sysctls)))
    machine.assert_nothing_left()


def test_the_network_is_not_ready_without_a_configuration(machine: Machine, cri: CriClient) -> None:
    (machine.conf_dir / "10-pvt.conflist").unlink()
    conditions = cri.runtime.Status(pb.StatusRequest()).status.conditions
    network = next(each for each in conditions if each.type == "NetworkReady")
    assert (network.status, network.reason) == (False, "NetworkPluginNotReady")
    assert str(machine.conf_dir) in network.message
