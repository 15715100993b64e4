# SPDX-License-Identifier: Apache-2.0
"""Pods as a kubelet 1.36 requests them: the user namespace that each gets, and where it is shown."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from support import kubelet, leaks
from support.cri_client import CriClient, refused
from support.daemon import Machine

from pvecri.cri.proto import cri_pb2 as pb
from pvecri.linux import mounts
from pvecri.pods.user_namespaces import ANNOTATION

PROXMOX = "0 100000 65536"
NODE = "0 0 4294967295"
KUBELETS = "0 4072865792 65536"
HIGH = 1_000_650_000

EXPECTED = dict.fromkeys(kubelet.PODS, ("ct", "default", PROXMOX)) | {
    "host-network": ("node", "host-network", NODE),
    "host-pid-and-ipc": ("node", "host-pid", NODE),
    "privileged": ("node", "privileged", NODE),
    "host-users-false": ("pod", "kubelet-mapping", KUBELETS),
    "restricted": ("pod", "high-ids", f"0 1879048192 65536, {HIGH} 1879113728 1"),
}


@pytest.fixture
def directory() -> Iterator[Path]:
    """What stands for /var/lib/kubelet: on a mount that propagates."""
    path = Path(tempfile.mkdtemp(prefix=leaks.PREFIX))
    path.chmod(0o755)
    mounts.bind(path, path)
    mounts.make_shared(path)
    try:
        yield path
    finally:
        mounts.umount_below(path)
        shutil.rmtree(path)


def id_map(cri: CriClient, container: str) -> str:
    lines = cri.output(container, "cat", "/proc/self/uid_map").splitlines()
    return ", ".join(" ".join(line.split()) for line in lines)


def told(cri: CriClient, pod: str) -> tuple[str, str]:
    described = json.loads(cri.pod_info(pod).info["info"])["userNamespace"]
    return described["kind"], described["reason"]


def running(cri: CriClient, sent: kubelet.SentPod) -> str:
    return next(each for each in sent.containers.values() if cri.status(each).state == pb.CONTAINER_RUNNING)


@pytest.mark.parametrize("name", kubelet.PODS)
def test_kubelets_pod_is_unprivileged_if_possible(
    machine: Machine, cri: CriClient, directory: Path, name: str
) -> None:
    kind, reason, mapping = EXPECTED[name]
    sent = kubelet.send(cri, name, directory)
    assert told(cri, sent.pod) == (kind, reason)
    assert id_map(cri, running(cri, sent)) == mapping
    config = machine.node.ct(cri.vmid(sent.pod), "config")
    assert bool(config.get("unprivileged")) is (kind == "ct")
    assert re.search(r"^user namespace: \S", str(config["description"]), re.MULTILINE)
    log = machine.daemon.log.read_text()
    assert re.search(rf"pod \S+_{sent.uid}_0: user namespace {kind} \({reason}\)", log)


@pytest.mark.parametrize(
    ("annotation", "mapping"), [("node", NODE), ("pod", "0 1879048192 65536"), ("shared", PROXMOX)]
)
def test_pod_can_select_its_user_namespace_by_annotation(
    cri: CriClient, directory: Path, annotation: str, mapping: str
) -> None:
    sent = kubelet.send(cri, "plain", directory, **{ANNOTATION: annotation})
    assert id_map(cri, running(cri, sent)) == mapping
    assert told(cri, sent.pod)[1] == "annotation"


def test_mode_cri_takes_node_literally(machine: Machine, directory: Path) -> None:
    with machine.restarted(user_namespaces='mode = "cri"') as cri:
        sent = kubelet.send(cri, "plain", directory)
        assert id_map(cri, running(cri, sent)) == NODE


def test_mode_per_pod_gives_pods_disjoint_ids(machine: Machine, directory: Path) -> None:
    with machine.restarted(user_namespaces='mode = "per-pod"') as cri:
        maps = [id_map(cri, running(cri, kubelet.send(cri, "plain", directory))) for _ in range(3)]
        assert maps == [f"0 {1_879_048_192 + number * 65_536} 65536" for number in range(3)]


def test_ids_of_a_removed_pod_are_reused(machine: Machine, directory: Path) -> None:
    settings = 'mode = "per-pod"\nhost_ids = {first = 1000000, last = 1065535}'
    with machine.restarted(user_namespaces=settings) as cri:
        for _ in range(2):
            sent = kubelet.send(cri, "plain", directory)
            with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, r"user_namespaces\.host_ids"):
                kubelet.send(cri, "plain", directory)
            cri.remove_pod(sent.pod)


def test_request_for_the_nodes_user_namespace_is_refused_if_not_allowed(machine: Machine, directory: Path) -> None:
    with machine.restarted(user_namespaces="allow_node = false") as cri:
        with refused(grpc.StatusCode.INVALID_ARGUMENT, r"user_namespaces\.allow_node"):
            kubelet.send(cri, "plain", directory, **{ANNOTATION: "node"})
        assert told(cri, kubelet.send(cri, "privileged", directory).pod) == ("node", "privileged")


def test_runtime_handler_selects_the_nodes_user_namespace(cri: CriClient) -> None:
    request = pb.RunPodSandboxRequest(config=cri.pod_config(), runtime_handler="pvecri-node-users")
    pod = cri.runtime.RunPodSandbox(request).pod_sandbox_id
    assert id_map(cri, cri.run(pod, "sleep", "1000")) == NODE
    assert told(cri, pod) == ("node", "runtime-handler")


def test_ids_stay_disjoint_after_a_restart_of_the_daemon(machine: Machine, directory: Path) -> None:
    with machine.restarted(user_namespaces='mode = "per-pod"') as cri:
        first = kubelet.send(cri, "plain", directory)
        machine.restart(user_namespaces='mode = "per-pod"')
        again = machine.client
        second = kubelet.send(again, "plain", directory)
        assert id_map(again, running(again, first)) == "0 1879048192 65536"
        assert id_map(again, running(again, second)) == "0 1879113728 65536"
        for pod in (first, second):
            again.remove_pod(pod.pod)
