# SPDX-License-Identifier: Apache-2.0
"""Pods of CRI-O and containerd: one CT each, from the first container to the pod's end for its front."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from support.cri_client import CriClient, eventually, refused
from support.front import (
    CGROUP,
    Front,
    containerd_annotations,
    crio_annotations,
    namespaces,
    oci_spec,
    pinned_namespaces,
    unpin,
)
from support.machine_node import EmbeddedNode
from support.pod_cgroups import below, kubepods

from pvecri.cri.proto import cri_pb2 as pb
from pvecri.linux import cgroups, processes
from pvecri.pods.sandbox.ct import INIT_NAMES

SANDBOX, WEB, DB = ("5a" * 32, "c0" * 32, "c1" * 32)
MIB = 1 << 20
Annotations = Callable[..., dict[str, str]]
FRONTS = {"CRI-O": crio_annotations, "containerd": containerd_annotations}


@pytest.fixture(params=FRONTS)
def annotate(request: pytest.FixtureRequest) -> Annotations:
    """Annotations of CRI-O, or of containerd."""
    return FRONTS[request.param]


@pytest.fixture
def pinned(front: Front) -> Iterator[dict[str, str]]:
    """The namespaces of a pod, pinned as CRI-O does it."""
    with pinned_namespaces(front.directory, "network", "ipc", "uts") as paths:
        yield paths


def run_sandbox(front: Front, annotate: Annotations, **changes: object) -> int:
    """Run the container of a sandbox; its PID for the front."""
    return front.run(SANDBOX, oci_spec("sleep", "1000", annotations=annotate(SANDBOX), **changes)).pid


def run_web(front: Front, annotate: Annotations, *command: str, name: str = WEB, **paths: str) -> int:
    """Run a container of the sandbox in the namespaces of `paths`; its PID for the front."""
    spec = oci_spec(*(command or ("sleep", "1000")), annotations=annotate(SANDBOX, f"name-{name[:2]}"))
    del spec["hostname"]  # it is the sandbox's
    spec["linux"] |= {"namespaces": namespaces(**{"pid": "", **paths}), "cgroupsPath": f"{CGROUP}/{name}"}
    return front.run(name, spec).pid


def link(path: str) -> Path:
    """What a namespace's link names."""
    return Path(path).readlink()


def ct_group(front: Front) -> str:
    """The CT's cgroup."""
    return f"/lxc/{front.vmid()}"


def test_sandbox_and_containers_are_in_one_ct(front: Front, cri: CriClient, annotate: Annotations) -> None:
    infra = run_sandbox(front, annotate)
    web = run_web(front, annotate, network=f"/proc/{infra}/ns/net", ipc=f"/proc/{infra}/ns/ipc")
    db = run_web(front, annotate, name=DB, network=f"/proc/{infra}/ns/net")
    (pod,) = cri.pods()
    assert (pod.id, pod.state, pod.metadata.name) == (SANDBOX, pb.SANDBOX_READY, "pod-5a5a5a")
    assert (pod.metadata.namespace, pod.metadata.uid) == ("tests", "uid-5a5a5a")
    assert [each.id for each in cri.containers()] == [WEB, DB]  # the sandbox's own is in no list
    assert [each.state for each in cri.containers()] == [pb.CONTAINER_RUNNING] * 2
    assert {infra, web, db} < set(cgroups.detect().processes(ct_group(front)))
    assert len({link(f"/proc/{pid}/ns/net") for pid in (infra, web, db)}) == 1
    front.delete(WEB, DB, SANDBOX)
    front.assert_nothing_left()


def test_processes_are_in_the_cts_pid_namespace(front: Front, annotate: Annotations) -> None:
    run_sandbox(front, annotate)
    web = run_web(front, annotate, "sleep", "4711")
    trees, group = cgroups.detect(), ct_group(front)

    def running(*command: str) -> list[int]:
        return [
            pid for pid in trees.processes(group) if processes.command_line(pid)[-len(command) :] == [*command]
        ]

    (init,) = (pid for pid in trees.processes(group) if processes.command_name(pid) in INIT_NAMES)
    # `start` is over before the container's process has executed its command.
    (inside,) = eventually(lambda: running("sleep", "4711"), "the command runs")
    assert len(pids(init)) == len(pids(web)) == 2  # on the node and in the CT
    assert (len(pids(inside)), pids(inside)[-1]) == (3, "1")
    # As `pct exec VMID -- ps` has it.
    command = ["nsenter", "-t", str(init), "--pid", "--mount", "/bin/busybox", "ps"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "sleep 4711" in listed


def pids(process: int) -> list[str]:
    """A process's PIDs from the node's namespace to the innermost."""
    return processes.status(process)["NSpid"].split()


def test_containers_share_the_sandboxs_pid_namespace(front: Front, annotate: Annotations) -> None:
    infra = run_sandbox(front, annotate)
    run_web(front, annotate, pid=f"/proc/{infra}/ns/pid")
    run_web(front, annotate, name=DB)
    (inside,) = json.loads(front.succeed("ps", "--format", "json", SANDBOX))
    (shared,) = json.loads(front.succeed("ps", "--format", "json", WEB))
    (own,) = json.loads(front.succeed("ps", "--format", "json", DB))
    links = [link(f"/proc/{pid}/ns/pid") for pid in (inside, shared, own)]
    assert links[0] == links[1] != links[2]
    assert "sleep" in front.succeed("exec", WEB, "cat", "/proc/1/comm")
    front.delete(WEB, DB, SANDBOX)
    front.assert_nothing_left()


def test_pid_and_network_may_be_the_nodes(front: Front, annotate: Annotations) -> None:
    spec = oci_spec(
        "sleep", "1000", annotations=annotate(SANDBOX), linux={"namespaces": namespaces(ipc="", uts="")}
    )
    called = front.run(SANDBOX, spec)
    (inside,) = json.loads(front.succeed("ps", "--format", "json", SANDBOX))
    for kind in ("pid", "net"):
        assert link(f"/proc/{inside}/ns/{kind}") == link(f"/proc/{called.caller.pid}/ns/{kind}")
    assert inside in cgroups.detect().processes(ct_group(front))
    front.succeed("kill", SANDBOX, "9")
    assert called.wait() == -9
    front.delete(SANDBOX)
    front.assert_nothing_left()


def test_front_finds_the_container_by_its_pid(front: Front, annotate: Annotations) -> None:
    infra = run_sandbox(front, annotate)
    pid = run_web(front, annotate, "sh", "-c", "echo here >/tmp/mark; sleep 1000")
    (inside,) = json.loads(front.succeed("ps", "--format", "json", WEB))[:1]
    for kind in ("net", "ipc", "uts", "mnt"):
        assert link(f"/proc/{pid}/ns/{kind}") == link(f"/proc/{inside}/ns/{kind}")
    assert (Path(f"/proc/{pid}/root") / "bin/busybox").exists()
    assert f"/lxc/{front.vmid()}/{WEB}" in Path(f"/proc/{pid}/cgroup").read_text()
    assert infra != pid


def test_usage_is_at_the_cgroup_that_the_front_chose(front: Front, annotate: Annotations) -> None:
    run_sandbox(front, annotate)
    run_web(front, annotate)
    trees = cgroups.detect()
    for chosen, real in zip(
        trees.directories(f"{CGROUP}/{WEB}"), trees.directories(f"{ct_group(front)}/{WEB}"), strict=True
    ):
        if real.exists():
            assert (chosen / "cgroup.procs").read_text() == (real / "cgroup.procs").read_text()
    front.succeed("kill", WEB, "9")
    front.wait_until_stopped(WEB)
    front.delete(WEB)
    assert not trees.exists(f"{CGROUP}/{WEB}")


# -- the CT -------------------------------------------------------------------------------------------------------


def test_ct_has_the_pods_name_tags_notes_and_limits(front: Front) -> None:
    limits = {"cpu_period": 100_000, "cpu_quota": 150_000, "memory_limit_in_bytes": 300 * MIB}
    annotations = crio_annotations(SANDBOX, PodLinuxResources=json.dumps(limits))
    front.run(SANDBOX, oci_spec("sleep", "1000", annotations=annotations))
    config = front.machine.node.ct(front.vmid(), "config")
    assert config["hostname"] == "pod-5a5a5a"
    assert "tests/pod-5a5a5a" in str(config["description"])
    assert float(str(config["cpulimit"])) == 1.5
    assert int(str(config["memory"])) >= 300
    vmid = front.vmid()
    eventually(lambda: "pvecri" in str(front.machine.node.ct(vmid, "config").get("tags")), "the CT has its tags")


def test_ct_of_a_container_alone_has_its_limits(front: Front) -> None:
    resources = {"memory": {"limit": 200 * MIB}, "cpu": {"quota": 50_000, "period": 100_000}}
    front.run("my_box", oci_spec("sleep", "1000", hostname="", linux={"resources": resources}))
    config = front.machine.node.ct(front.vmid(), "config")
    assert config["hostname"] == "my-box"
    assert (float(str(config["cpulimit"])), int(str(config["memory"])) >= 200) == (0.5, True)


def test_ct_follows_the_kubelets_cgroup_of_the_pod(front: Front) -> None:
    with kubepods() as all_pods:
        pod = below(all_pods, "poduid-5a5a5a")
        pod.set(memory_max=300 * MIB)
        spec = oci_spec("sleep", "1000", annotations=containerd_annotations(SANDBOX))
        spec["linux"]["cgroupsPath"] = f"{pod.path}/{SANDBOX}"
        front.run(SANDBOX, spec)
        before = int(str(front.machine.node.ct(front.vmid(), "config")["memory"]))
        pod.set(memory_max=500 * MIB)
        front.succeed("update", "--resources", "-", SANDBOX, input="{}")
        after = int(str(front.machine.node.ct(front.vmid(), "config")["memory"]))
        front.delete(SANDBOX)
    assert 300 <= before <= after - 200  # with room for the CT's own processes


def test_container_has_its_own_limits_below_the_ct(front: Front, annotate: Annotations) -> None:
    run_sandbox(front, annotate)
    spec = oci_spec("sleep", "1000", annotations=annotate(SANDBOX, "web"))
    spec["linux"]["resources"] |= {"pids": {"limit": 7}}
    front.run(WEB, spec)
    file = cgroups.detect().directory(f"{ct_group(front)}/{WEB}", "pids") / "pids.max"
    assert file.read_text() == "8\n"  # the monitor is one, too


# -- CRI calls ----------------------------------------------------------------------------------------------------


def test_cri_calls_that_only_the_front_can_do_are_refused(front: Front, cri: CriClient) -> None:
    run_sandbox(front, crio_annotations)
    spec = oci_spec("sleep", "1000", annotations=crio_annotations(SANDBOX, "web"))
    front.create(WEB, spec)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "run by CRI-O, through pvecri-runtime"):
        cri.create(SANDBOX, cri.container_config("true"))
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "run by CRI-O, through pvecri-runtime"):
        cri.start(WEB)
    assert cri.status(WEB).state == pb.CONTAINER_CREATED
    assert cri.pod_status(SANDBOX).state == pb.SANDBOX_READY


def test_cri_shows_commands_and_statistics_of_a_container(front: Front, cri: CriClient) -> None:
    run_sandbox(front, crio_annotations)
    run_web(front, crio_annotations)
    assert cri.output(WEB, "echo", "hello") == "hello\n"
    stats = cri.runtime.ListContainerStats(pb.ListContainerStatsRequest()).stats
    assert [each.attributes.id for each in stats] == [WEB]
    assert stats[0].memory.usage_bytes.value > 0
    (pod,) = cri.runtime.ListPodSandboxStats(pb.ListPodSandboxStatsRequest()).stats
    assert pod.attributes.id == SANDBOX


def test_administrator_may_remove_a_pod_by_the_cri(front: Front, cri: CriClient) -> None:
    called = front.run(SANDBOX, oci_spec("sleep", "1000", annotations=crio_annotations(SANDBOX)))
    cri.stop_pod(SANDBOX)
    assert called.wait() == -9
    front.wait_until_stopped(SANDBOX)
    cri.remove_pod(SANDBOX)
    front.delete(SANDBOX)
    front.assert_nothing_left()


# -- the end of a pod ---------------------------------------------------------------------------------------------


def test_pod_ends_with_its_sandboxs_container(front: Front, cri: CriClient, annotate: Annotations) -> None:
    run_sandbox(front, annotate)
    called = front.run(WEB, oci_spec("sleep", "1000", annotations=annotate(SANDBOX, "web")))
    front.delete(SANDBOX)
    assert called.wait() == -9
    front.wait_until_stopped(WEB)
    assert [each.state for each in cri.pods()] == [pb.SANDBOX_NOTREADY]
    front.delete(WEB)
    assert cri.pods() == []
    front.assert_nothing_left()


def test_containers_come_and_go_in_a_running_pod(front: Front, cri: CriClient, annotate: Annotations) -> None:
    run_sandbox(front, annotate)
    vmid = front.vmid()
    for _ in range(3):
        called = front.run(WEB, oci_spec("true", annotations=annotate(SANDBOX, "web")))
        assert called.wait() == 0
        front.delete(WEB)
    assert (front.vmid(), len(cri.pods())) == (vmid, 1)


def test_pod_without_a_sandboxs_container_ends_with_its_pinned_namespace(
    front: Front, cri: CriClient, pinned: dict[str, str]
) -> None:
    run_web(front, crio_annotations, **pinned)
    front.delete(WEB)
    assert len(cri.pods()) == 1  # the kubelet starts its containers again
    run_web(front, crio_annotations, name=DB, **pinned)
    assert len(cri.pods()) == 1
    for path in pinned.values():
        unpin(Path(path))
    front.delete(DB)
    assert cri.pods() == []
    front.assert_nothing_left()


def test_empty_pod_whose_namespace_is_unpinned_is_removed_without_a_call(
    front: Front, cri: CriClient, pinned: dict[str, str]
) -> None:
    run_web(front, crio_annotations, **pinned)
    front.delete(WEB)
    for path in pinned.values():
        unpin(Path(path))
    eventually(lambda: cri.pods() == [], "the pod is removed")
    front.assert_nothing_left()


def test_pod_without_namespaces_of_its_own_ends_with_its_last_container(front: Front, cri: CriClient) -> None:
    run_web(front, crio_annotations)
    run_web(front, crio_annotations, name=DB)
    front.delete(WEB)
    assert len(cri.pods()) == 1
    front.delete(DB)
    assert cri.pods() == []
    front.assert_nothing_left()


def test_containers_of_a_new_pod_may_be_created_at_once(
    front: Front, cri: CriClient, pinned: dict[str, str]
) -> None:
    spec = oci_spec("sleep", "1000", annotations=crio_annotations(SANDBOX, "web"))
    spec["linux"]["namespaces"] = namespaces(pid="", **pinned)
    names = [f"{number:02x}" * 32 for number in range(4)]
    callers = [front.begin_create(name, spec) for name in names]
    assert [each.status for each in callers] == [0] * 4
    assert len(cri.pods()) == 1
    front.delete(*names)


def test_ct_stopped_in_proxmox_ends_its_containers_with_137(front: Front, annotate: Annotations) -> None:
    infra = front.run(SANDBOX, oci_spec("sleep", "1000", annotations=annotate(SANDBOX)))
    web = front.run(WEB, oci_spec("sleep", "1000", annotations=annotate(SANDBOX, "web")))
    front.stop_ct()
    assert (infra.wait(), web.wait()) == (-9, -9)  # 137, as shells and fronts count
    for name in (SANDBOX, WEB):
        front.wait_until_stopped(name)
        front.refuse("container not running", "kill", name, "15")
    late = front.begin_create(DB, oci_spec("true", annotations=annotate(SANDBOX, "db")))
    assert late.status == 1
    assert "CT" in late.stderr.read()
    front.delete(WEB, SANDBOX)
    front.assert_nothing_left()


def test_ids_of_a_sandbox_and_of_a_cri_pod_do_not_meet(
    front: Front, cri: CriClient, embedded: EmbeddedNode
) -> None:
    pod = cri.run_pod()
    created = front.begin_create(WEB, oci_spec("true", annotations=crio_annotations(pod, "web")))
    assert created.status == 1
    assert "is not a pod of CRI-O" in created.stderr.read()
    assert cri.pod_status(pod).state == pb.SANDBOX_READY
    assert len(embedded.cts()) == 1
