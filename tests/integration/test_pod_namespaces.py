# SPDX-License-Identifier: Apache-2.0
"""Namespaces that the containers of a pod share with each other and with the node."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.cri_client import CriClient, pod_security, security
from support.daemon import Machine

from pvecri.cri.proto import cri_pb2 as pb

SHARED = ("net", "ipc", "uts", "user")
NAMESPACES = "cd /proc/self/ns; for kind in net ipc uts user pid; do readlink $kind; done"


def kinds(text: str) -> dict[str, str]:
    """Namespaces by kind, from what readlink says of them."""
    return {kind: identity for kind, _, identity in (line.partition(":") for line in text.split())}


def of_node() -> dict[str, str]:
    """The namespaces that the node's own processes are in."""
    return {
        name: str(Path("/proc/thread-self/ns", name).readlink()).partition(":")[2] for name in (*SHARED, "pid")
    }


def options(**modes: int) -> pb.NamespaceOption:
    return pb.NamespaceOption(**{"pid": pb.CONTAINER, **modes})  # type: ignore[arg-type]


def test_containers_share_all_namespaces_except_pid_and_mount(cri: CriClient) -> None:
    pod = cri.run_pod()
    running = cri.run(pod, "sleep", "1000", name="running")
    first = kinds(cri.output(running, "sh", "-c", NAMESPACES))
    second = kinds(cri.finish(pod, "sh", "-c", NAMESPACES, name="second"))
    assert {kind for kind in first if first[kind] == second[kind]} == set(SHARED)
    assert not set(first.values()) & set(of_node().values())


@pytest.mark.parametrize(
    ("modes", "the_nodes"),
    [
        ({}, {"user"}),
        ({"network": pb.NODE}, {"user", "net", "uts"}),
        ({"pid": pb.NODE}, {"user", "pid"}),
        ({"ipc": pb.NODE}, {"user", "ipc"}),
        ({"network": pb.NODE, "pid": pb.NODE, "ipc": pb.NODE}, {"user", "net", "uts", "pid", "ipc"}),
    ],
)
def test_privileged_pod_has_the_requested_namespaces_of_the_node(
    cri: CriClient, modes: dict[str, int], the_nodes: set[str]
) -> None:
    linux = pod_security(namespace_options=options(**modes), privileged=True)
    pod = cri.run_pod(cri.pod_config(linux=linux))
    inside = kinds(cri.finish(pod, "sh", "-c", NAMESPACES, linux=security(namespace_options=options(**modes))))
    node = of_node()
    assert {kind for kind in inside if inside[kind] == node[kind]} == the_nodes


def test_dev_shm_is_the_pods(cri: CriClient) -> None:
    pod = cri.run_pod()
    cri.finish(pod, "sh", "-c", "echo shared >/dev/shm/file")
    assert cri.finish(pod, "cat", "/dev/shm/file", name="reader") == "shared\n"


def test_dev_shm_of_a_pod_with_the_nodes_ipc_is_the_nodes(machine: Machine, cri: CriClient) -> None:
    modes = {"ipc": pb.NODE}
    pod = cri.run_pod(cri.pod_config(linux=pod_security(namespace_options=options(**modes))))
    shared = Path("/dev/shm", machine.directory.name)
    shared.write_text("the node's\n")
    try:
        linux = security(namespace_options=options(**modes))
        assert cri.finish(pod, "cat", str(shared), linux=linux) == "the node's\n"
    finally:
        shared.unlink()


def test_container_has_its_own_pid_namespace(cri: CriClient) -> None:
    assert cri.finish(cri.run_pod(), "sh", "-c", "echo $$ /proc/[0-9]*") == "1 /proc/1\n"


def test_containers_in_the_pods_pid_namespace_see_each_other(cri: CriClient) -> None:
    pid = options(pid=pb.POD)
    pod = cri.run_pod(cri.pod_config(linux=pod_security(namespace_options=pid)))
    cri.run(pod, "sleep", "12345", name="sleeper", linux=security(namespace_options=pid))
    shown = cri.finish(pod, "ps", linux=security(namespace_options=pid))
    assert "sleep 12345" in shown
    assert "catatonit" in shown


def test_container_can_join_the_pid_namespace_of_another(cri: CriClient) -> None:
    pod = cri.run_pod()
    target = cri.run(pod, "sleep", "12345", name="target")
    joined = security(namespace_options=pb.NamespaceOption(pid=pb.TARGET, target_id=target))
    shown = cri.finish(pod, "ps", name="debugger", linux=joined)
    assert re.search(r"^ *1 .* sleep 12345$", shown, re.MULTILINE)
    assert "catatonit" not in shown


def test_nodes_processes_are_visible_only_in_its_pid_namespace(machine: Machine, cri: CriClient) -> None:
    linux = pod_security(namespace_options=options(pid=pb.NODE))
    pod = cri.run_pod(cri.pod_config(linux=linux))
    # Not by ls, which looks at each entry and fails for processes that end meanwhile.
    script = "cd /proc && echo *"
    shown = cri.finish(pod, "sh", "-c", script, linux=security(namespace_options=options(pid=pb.NODE)))
    assert str(machine.daemon.pid) in shown.split()


def test_root_in_a_pod_is_unprivileged_on_the_node(machine: Machine, cri: CriClient) -> None:
    pod = cri.run_pod()
    container = cri.run(pod, "sh", "-c", "sleep 1000")
    assert cri.output(container, "id", "-u") == "0\n"
    assert {Path(f"/proc/{pid}").stat().st_uid for pid in machine.processes(pod, container)} == {100_000}
