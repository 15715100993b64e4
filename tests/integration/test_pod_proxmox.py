# SPDX-License-Identifier: Apache-2.0
"""A pod as Proxmox shows it."""

from __future__ import annotations

import pytest
from support.cri_client import CriClient, eventually, pod_security
from support.daemon import Machine

from pvecri.cri.proto import cri_pb2 as pb
from pvecri.pods.sandbox import ct_notes

MIB = 1 << 20


def test_ct_has_the_pods_name_tags_and_description(machine: Machine, cri: CriClient) -> None:
    config = cri.pod_config("web-0")
    pod = cri.run_pod(config)
    ct = machine.node.ct(cri.vmid(pod), "config")
    assert ct["hostname"] == "web-0"
    eventually(lambda: machine.node.ct(cri.vmid(pod), "config").get("tags") == "pvecri", "the CT has its tags")
    notes = str(ct["description"]).splitlines()
    assert notes[0] == "**managed by pvecri: use kubectl**"
    assert {"Kubernetes pod `tests/web-0`", f"uid: `{config.metadata.uid}`", f"sandbox: {pod}"} <= set(notes)


def test_ct_has_a_tag_for_its_namespace_if_configured(machine: Machine) -> None:
    with machine.restarted(proxmox="namespace_tags = true") as cri:
        pod = cri.run_pod(cri.pod_config(metadata=pb.PodSandboxMetadata(name="web", namespace="Shop.eu", uid="1")))
        tags = {"pvecri", "ns-shop.eu"}
        eventually(
            lambda: set(str(machine.node.ct(cri.vmid(pod), "config").get("tags")).split(";")) == tags,
            "the CT has its tags",
        )


def notes_of(machine: Machine, vmid: int) -> list[str]:
    """The lines of a CT's notes."""
    return str(machine.node.ct(vmid, "config")["description"]).splitlines()


def test_notes_show_the_containers_and_their_states(machine: Machine, cri: CriClient, pod: str) -> None:
    vmid = cri.vmid(pod)
    cri.run(pod, "sleep", "1000", name="web")
    cri.wait_for_exit(cri.run(pod, "sh", "-c", "exit 3", name="init"))
    cri.create(pod, cri.container_config("true", name="next"))
    image = f"`{cri.image}`"
    shown = [f"- `web` running: {image}", f"- `init` exited with 3: {image}", f"- `next` created: {image}"]
    eventually(lambda: notes_of(machine, vmid)[-3:] == shown, "the notes show the containers")
    assert ct_notes.owner("\n".join(notes_of(machine, vmid))).sandbox == pod
    cri.remove_pod(pod)
    machine.assert_nothing_left()


def test_ct_has_the_pods_name_if_there_is_no_hostname(machine: Machine, cri: CriClient) -> None:
    pod = cri.run_pod(cri.pod_config("job.runner_1", hostname=""))
    assert machine.node.ct(cri.vmid(pod), "config")["hostname"] == "job.runner-1"


@pytest.mark.parametrize(
    ("hostname", "shown"), [("web_0", "web-0"), ("n" * 64, "n" * 63), (f"{'a' * 31}.{'b_' * 16}", None)]
)
def test_longest_kubernetes_names_are_accepted(
    machine: Machine, cri: CriClient, hostname: str, shown: str | None
) -> None:
    pod = cri.run_pod(cri.pod_config(hostname=hostname))
    assert cri.finish(pod, "sh", "-c", "hostname; cat /etc/hostname").split() == [hostname] * 2
    name = str(machine.node.ct(cri.vmid(pod), "config")["hostname"])
    assert len(name) <= 63
    assert name == (shown or name)


def test_the_longest_names_that_kubernetes_has_fit(machine: Machine, cri: CriClient) -> None:
    metadata = pb.PodSandboxMetadata(name="n" * 253, namespace="s" * 63, uid="u" * 36)
    pod = cri.run_pod(cri.pod_config(metadata=metadata, hostname="n" * 63))
    assert machine.node.ct(cri.vmid(pod), "config")["hostname"] == "n" * 63
    assert cri.pod_status(pod).metadata == metadata
    assert cri.finish(pod, "hostname", name="c" * 63) == "n" * 63 + "\n"


@pytest.mark.parametrize("privileged", [False, True])
def test_only_pods_that_need_it_have_a_privileged_ct(machine: Machine, cri: CriClient, privileged: bool) -> None:
    pod = cri.run_pod(cri.pod_config(linux=pod_security(privileged=privileged)))
    assert bool(machine.node.ct(cri.vmid(pod), "config").get("unprivileged")) is not privileged


def test_ct_runs_while_the_pod_is_ready_and_is_destroyed_with_it(machine: Machine, cri: CriClient) -> None:
    pod = cri.run_pod()
    vmid = cri.vmid(pod)
    assert machine.node.ct(vmid, "status/current")["status"] == "running"
    cri.stop_pod(pod)
    eventually(lambda: machine.node.ct(vmid, "status/current")["status"] == "stopped", "Proxmox shows its end")
    cri.remove_pod(pod)
    eventually(lambda: vmid not in machine.node.cts(), "the CT is destroyed")


def test_the_ct_is_sized_by_the_pods_resources(machine: Machine, cri: CriClient) -> None:
    wanted = pb.LinuxContainerResources(
        cpu_quota=150_000, cpu_period=100_000, cpu_shares=1024, memory_limit_in_bytes=256 * MIB
    )
    pod = cri.run_pod(cri.pod_config(linux=pb.LinuxPodSandboxConfig(resources=wanted)))
    ct = machine.node.ct(cri.vmid(pod), "config")
    # 256 MiB and the overhead of 32, and memory.high (1016/1024 of the size) is not below them.
    assert (int(str(ct["memory"])), int(str(ct["swap"]))) == (291, 0)
    assert float(str(ct["cpulimit"])) == 1.5
    assert int(str(ct["cpuunits"])) == 39


def test_pod_without_limits_has_the_nodes_memory(machine: Machine, cri: CriClient) -> None:
    ct = machine.node.ct(cri.vmid(cri.run_pod()), "config")
    total = machine.node.request("GET", f"/nodes/{machine.node.name}/status")
    assert isinstance(total, dict)
    assert int(str(ct["memory"])) == total["memory"]["total"] // MIB
    assert float(str(ct.get("cpulimit", 0))) == 0


def test_ct_has_a_shutdown_timeout_of_one_second(machine: Machine, cri: CriClient) -> None:
    """Proxmox's stopall gives a CT 180 s, unless its option `startup` says otherwise."""
    assert machine.node.ct(cri.vmid(cri.run_pod()), "config")["startup"] == "down=1"


def test_released_vmid_is_not_reused_at_once(cri: CriClient) -> None:
    first = cri.run_pod()
    vmid = cri.vmid(first)
    cri.remove_pod(first)
    assert cri.vmid(cri.run_pod()) != vmid


def test_memory_of_containers_counts_for_their_ct(machine: Machine, cri: CriClient) -> None:
    pod = cri.run_pod()
    before = int(str(machine.node.ct(cri.vmid(pod), "status/current")["mem"]))
    cri.run(pod, "sh", "-c", "dd if=/dev/zero of=/dev/shm/block bs=1M count=32; echo done; sleep 1000")
    container = cri.containers(pod_sandbox_id=pod)[0].id
    cri.output(container, "sh", "-c", "until [ $(stat -c %s /dev/shm/block) = 33554432 ]; do usleep 1000; done")
    after = int(str(machine.node.ct(cri.vmid(pod), "status/current")["mem"]))
    assert after - before >= 32 * MIB
