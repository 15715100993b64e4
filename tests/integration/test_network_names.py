# SPDX-License-Identifier: Apache-2.0
"""/etc/hosts, /etc/hostname and /etc/resolv.conf of pods, as a kubelet's pods have them."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from support.cri_client import CriClient, pod_security

from pvecri.cri.proto import cri_pb2 as pb

FILES = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf")
IDS = pb.IDMapping(container_id=0, host_id=3_000_000, length=65_536)
DNS = pb.DNSConfig(
    servers=["10.96.0.10", "fd00:10::a"],
    searches=["default.svc.cluster.local", "svc.cluster.local", "cluster.local"],
    options=["ndots:5", "edns0"],
)


def options(**fields: Any) -> pb.LinuxPodSandboxConfig:
    return pod_security(namespace_options=pb.NamespaceOption(**fields))


KINDS = {
    "in an unprivileged CT": pb.LinuxPodSandboxConfig(),
    "privileged": pod_security(privileged=True),
    "on the node's network": options(network=pb.NODE),
    "with ids of the kubelet's choice": options(
        userns_options=pb.UserNamespace(mode=pb.POD, uids=[IDS], gids=[IDS])
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_owned_by_and_writable_for_the_pods_root(cri: CriClient, kind: str) -> None:
    pod = cri.run_pod(cri.pod_config(dns_config=DNS, linux=KINDS[kind]))
    linux = pb.LinuxContainerConfig()
    linux.security_context.namespace_options.CopyFrom(KINDS[kind].security_context.namespace_options)
    linux.security_context.namespace_options.pid = pb.CONTAINER
    script = f"ls -ln {' '.join(FILES)}; echo 192.0.2.9 more >> /etc/hosts && tail -n 1 /etc/hosts"

    *listed, written = cri.finish(pod, "sh", "-c", script, linux=linux).splitlines()

    assert [line.split()[0] for line in listed] == ["-rw-r--r--"] * 3
    assert [line.split()[2:4] for line in listed] == [["0", "0"]] * 3
    assert written == "192.0.2.9 more"


def test_resolv_conf_is_exactly_the_kubelets(cri: CriClient) -> None:
    pod = cri.run_pod(cri.pod_config(dns_config=DNS))

    assert cri.finish(pod, "cat", "/etc/resolv.conf").splitlines() == [
        "nameserver 10.96.0.10",
        "nameserver fd00:10::a",
        "search default.svc.cluster.local svc.cluster.local cluster.local",
        "options ndots:5 edns0",
    ]


def test_pod_without_dns_configuration_has_the_nodes_resolv_conf(cri: CriClient) -> None:
    assert cri.finish(cri.run_pod(), "cat", "/etc/resolv.conf") == Path("/etc/resolv.conf").read_text()


def test_a_pods_full_name_is_its_hostname(cri: CriClient) -> None:
    name = "web-0.web.default.svc.cluster.local"
    pod = cri.run_pod(cri.pod_config(hostname=name))

    shown = cri.finish(pod, "sh", "-c", "hostname; cat /etc/hostname; grep web-0 /etc/hosts").splitlines()

    assert shown == [name, name, f"{cri.pod_status(pod).network.ip}\t{name}"]


def test_pod_with_the_nodes_network_has_its_own_copy_of_etc_hosts(cri: CriClient) -> None:
    pod = cri.run_pod(cri.pod_config(linux=KINDS["on the node's network"]))
    before = Path("/etc/hosts").read_text()

    shown = cri.finish(pod, "sh", "-c", "cat /etc/hosts; hostname; echo changed > /etc/hosts")

    assert shown == f"{before}{socket.gethostname()}\n"
    assert Path("/etc/hosts").read_text() == before
