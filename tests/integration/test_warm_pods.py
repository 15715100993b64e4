# SPDX-License-Identifier: Apache-2.0
"""Warm CTs: claimed by pods in place of new ones, adopted or removed after a restart; none is lost or left."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from support import pod_cgroups
from support.cri_client import CriClient, eventually, pod_security, refused
from support.daemon import Machine
from support.front import Front, containerd_annotations, crio_annotations, oci_spec
from support.lan import bridge_to_another_host
from support.machine_node import SECOND_STORAGE, EmbeddedNode

from pvecri.cri.proto import cri_pb2 as pb
from pvecri.linux import cgroups

WARM = "warm_pods = {unprivileged = 1, privileged = 1}"
CONFIG = "/nodes/[^/]+/lxc/[0-9]+/config"

ID_MAPPING = pb.IDMapping(host_id=1_900_000_000, container_id=0, length=65_536)
OWN_USERS = pb.UserNamespace(mode=pb.POD, uids=[ID_MAPPING], gids=[ID_MAPPING])
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "privileged": {"privileged": True},
    "host network": {"namespace_options": pb.NamespaceOption(network=pb.NODE)},
    "host PID": {"namespace_options": pb.NamespaceOption(pid=pb.NODE)},
    "IDs of the kubelet's": {"namespace_options": pb.NamespaceOption(userns_options=OWN_USERS)},
}


@pytest.fixture
def warmed(machine: Machine) -> Iterator[CriClient]:
    """A daemon with at most one warm CT of each kind."""
    with machine.restarted(proxmox=WARM) as cri:
        yield cri


def waiting(machine: Machine) -> list[int]:
    """The VMIDs of the CTs that a pod could claim."""
    rows = machine._select(
        "SELECT vmid FROM sandboxes WHERE json_extract(CAST(value AS TEXT), '$.warm.digest') IS NOT NULL "
        "AND json_extract(CAST(value AS TEXT), '$.phase') = 'creating'"
    )
    return [int(str(row[0])) for row in rows]


def first_waiting(machine: Machine) -> int:
    """The VMID of a CT that a pod can claim, as soon as there is one."""
    return eventually(lambda: waiting(machine), "a CT waits for a pod")[0]


def settled(machine: Machine) -> bool:
    """Whether the node has the CTs of the pods and one that waits, and the store no other row."""
    rows = {int(str(row[0] or 0)) for row in machine._select("SELECT vmid FROM sandboxes")}
    try:
        wanted = {machine.client.vmid(pod.id) for pod in machine.client.pods()} | set(waiting(machine))
    except grpc.RpcError:  # a pod that could not be created has just been removed
        return False
    return len(waiting(machine)) == 1 and rows == wanted == machine.node.cts() & set(machine.vmids)


def with_limits(cri: CriClient, security: dict[str, Any]) -> pb.PodSandboxConfig:
    resources = pb.LinuxContainerResources(
        cpu_period=100_000, cpu_quota=150_000, cpu_shares=512, memory_limit_in_bytes=64 << 20
    )
    linux = pod_security(**security)
    linux.resources.CopyFrom(resources)
    linux.overhead.CopyFrom(pb.LinuxContainerResources(memory_limit_in_bytes=8 << 20))
    linux.sysctls["kernel.shm_rmid_forced"] = "1"
    annotations = {"note": "of the pod"}
    return cri.pod_config(linux=linux, annotations=annotations)


# -- as a new CT --------------------------------------------------------------------------------------------------

IN_CONTAINER = """
cat /proc/self/uid_map /proc/self/gid_map; grep -E '^(Cap|Seccomp|NoNew)' /proc/self/status
echo "$(hostname) $(cat /etc/hostname)"; ls /sys/class/net; ip -o -f inet addr show | wc -l; ip route | wc -l
cat /proc/sys/net/ipv4/ping_group_range /proc/sys/net/ipv4/ip_unprivileged_port_start
cat /proc/sys/kernel/shm_rmid_forced; cat /proc/self/attr/current; ulimit -a; cat /proc/self/oom_score_adj
"""
TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
LIMITS = ("memory.max", "memory.high", "memory.swap.max", "cpu.max", "cpu.weight", "cpu.shares", "pids.max")


def shown(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def described(machine: Machine, cri: CriClient, pod: str) -> dict[str, list[str]]:
    """What Proxmox, the kernel and a container show of a pod, with its own names and numbers replaced."""
    status, vmid = cri.pod_status(pod), cri.vmid(pod)
    # The tags of a new CT are set once the pod runs.
    eventually(lambda: "tags" in machine.node.ct(vmid, "config"), "the CT has its tags")
    config = machine.node.ct(vmid, "config")
    config.pop("digest")
    group = pod_cgroups.of(f"/lxc/{vmid}")
    init = cgroups.detect().processes(f"/lxc/{vmid}/ns")[0]
    container = cri.run(pod, "sleep", "1000")
    try:
        inside = cri.exec(container, "sh", "-c", IN_CONTAINER).stdout.decode()
    finally:
        cri.stop(container)
    found = {
        "config": config,
        "limits": {name: group.get(name) for name in LIMITS if group.file(name).exists()},
        "init": shown("cat", *(f"/proc/{init}/{name}" for name in ("oom_score_adj", "uid_map", "attr/current"))),
        "hostname of the CT": shown("nsenter", f"--uts=/proc/{init}/ns/uts", "hostname"),
        "container": inside,
        "looked after": machine._select(
            f"SELECT json_extract(CAST(value AS TEXT), '$.ct_options') FROM sandboxes WHERE id = '{pod}'"
        ),
        "addresses": len(status.network.ip.split(".")),
        "user namespace": str(status.linux.namespaces),
        "annotations": dict(status.annotations),
    }
    names = (status.metadata.name, status.metadata.uid, pod, str(vmid), container)
    own = "|".join([*map(re.escape, names), TIME])
    return {name: re.sub(rf"\b({own})\b", "OWN", str(value)).splitlines() for name, value in found.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_claimed_ct_is_as_a_new_one(machine: Machine, warmed: CriClient, kind: str) -> None:
    eventually(lambda: not waiting(machine), "no CT waits yet")
    new = warmed.run_pod(with_limits(warmed, KINDS[kind]))
    expected = described(machine, warmed, new)
    warmed.stop_pod(new)  # the IDs of its user namespace may be the other pod's, too
    warmed.remove_pod(new)
    vmid = first_waiting(machine)
    assert str(machine.node.ct(vmid, "config")["description"]).startswith("**Waiting for a pod")
    claimed = warmed.run_pod(with_limits(warmed, KINDS[kind]))
    assert warmed.vmid(claimed) == vmid
    assert described(machine, warmed, claimed) == expected


def test_waiting_ct_can_be_recognised_in_proxmox_and_is_no_pod(machine: Machine, warmed: CriClient) -> None:
    pod = warmed.run_pod()
    config = machine.node.ct(first_waiting(machine), "config")
    assert config["tags"] == "pvecri;pvecri-warm"
    assert config["hostname"] == "pvecri-warm"
    assert [each.id for each in warmed.pods()] == [pod]


def test_pod_of_the_other_kind_does_not_get_it(machine: Machine, warmed: CriClient) -> None:
    warmed.run_pod()
    vmid = first_waiting(machine)
    other = warmed.run_pod(warmed.pod_config(linux=pod_security(privileged=True)))
    assert warmed.vmid(other) != vmid
    assert re.search(r"pod-\d+_\S+ gets a new CT: no privileged CT waits", machine.daemon.log.read_text())


def test_pod_with_a_proxmox_interface_gets_a_new_ct(machine: Machine, embedded: EmbeddedNode) -> None:
    embedded.allow("KubeBridges", vmbr1="pvtlan")
    with (
        bridge_to_another_host("pvtlan", "10.20.0.2/24", "fd00:20::2/64"),
        machine.restarted(proxmox=WARM, network='pod_bridges = ["pvtlan"]') as cri,
    ):
        cri.run_pod()
        vmid = first_waiting(machine)
        interface = {"network.pvecri.io/interface": "bridge=pvtlan,ip=10.20.0.5/24"}
        pod = cri.run_pod(cri.pod_config(annotations=interface))
        assert cri.vmid(pod) != vmid
        assert "net0" in machine.node.ct(cri.vmid(pod), "config")
        assert "gets a new CT: an interface of Proxmox's has to exist before" in machine.daemon.log.read_text()


@pytest.mark.parametrize("annotate", [crio_annotations, containerd_annotations])
def test_pod_of_a_front_gets_it(
    machine: Machine, front: Front, warmed: CriClient, annotate: Callable[..., dict[str, str]]
) -> None:
    """The front names its pod by an id of its own in each call, also after a restart of the daemon."""
    first, second, web = "5a" * 32, "5b" * 32, "c0" * 32
    front.run(first, oci_spec("sleep", "1000", annotations=annotate(first)))
    vmid = first_waiting(machine)
    front.run(second, oci_spec("sleep", "1000", annotations=annotate(second)))
    assert vmid not in waiting(machine)
    config = machine.node.ct(vmid, "config")
    assert f"`{second}`" in str(config["description"])
    assert "pvecri-warm" not in str(config["tags"])
    machine.kill()
    machine.start(proxmox=WARM)
    front.run(web, oci_spec("sleep", "1000", annotations=annotate(second, "web")))
    assert cgroups.detect().processes(f"/lxc/{vmid}/{web}")
    front.delete(web, first, second)
    # Whether another one waits depends on what the restarted daemon saw of the pods before they were gone.
    eventually(lambda: machine.node.cts() & set(machine.vmids) <= set(waiting(machine)), "the pods' CTs are gone")


def test_used_ct_is_destroyed_with_its_pod(machine: Machine, warmed: CriClient) -> None:
    warmed.run_pod()
    vmid = first_waiting(machine)
    pod = warmed.run_pod()
    warmed.remove_pod(pod)
    eventually(lambda: vmid not in machine.node.cts(), "the CT is destroyed")


# -- after a restart ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_next_daemon_adopts_the_cts_that_wait(machine: Machine, warmed: CriClient, ending: signal.Signals) -> None:
    warmed.run_pod()
    vmid = first_waiting(machine)
    machine.stop(ending)
    machine.start(proxmox=WARM)
    # Not the first pods, perhaps: its settings are compared once Proxmox has answered.
    eventually(lambda: machine.client.vmid(machine.client.run_pod()) == vmid, "a pod gets it")


@pytest.mark.parametrize("settings", [f'{WARM}\nstorage = "{SECOND_STORAGE}"', "", "memory_overhead_mib = 40"])
def test_next_daemon_removes_what_its_settings_do_not_want(
    machine: Machine, embedded: EmbeddedNode, warmed: CriClient, settings: str
) -> None:
    embedded.allow("KubeRootfs", **{"local-lvm": SECOND_STORAGE})
    warmed.run_pod()
    vmid = first_waiting(machine)
    machine.stop()
    machine.start(proxmox=settings)
    eventually(lambda: vmid not in machine.node.cts(), "the CT is removed")
    if SECOND_STORAGE in settings:
        config = machine.node.ct(first_waiting(machine), "config")
        assert str(config["rootfs"]).startswith(f"{SECOND_STORAGE}:")


def test_ct_that_ended_while_no_daemon_ran_is_removed_and_its_clone_is_not(
    machine: Machine, embedded: EmbeddedNode, warmed: CriClient
) -> None:
    warmed.run_pod()
    vmid, clone = first_waiting(machine), machine.vmids[-1]
    machine.kill()
    machine.node.task("POST", f"/lxc/{vmid}/status/stop")
    machine.node.task("POST", f"/lxc/{vmid}/clone", newid=clone, pool=embedded.account.pool, full=1)
    machine.start(proxmox=WARM)
    eventually(lambda: vmid not in machine.node.cts(), "the CT is removed")
    status = machine.client.runtime.Status

    def reported() -> list[str]:
        info = json.loads(status(pb.StatusRequest(verbose=True)).info["foreignCts"])
        return [each["reason"] for each in info if each["vmid"] == clone]

    assert eventually(reported, "the clone is reported") == ["copy"]
    assert clone in machine.node.cts()
    machine.node.remove_ct(clone)


# -- the daemon is killed -----------------------------------------------------------------------------------------

STEPS_OF_A_CREATE: list[dict[str, object]] = [
    {"task": "vzcreate", "hold": True},
    {"task": "vzstart", "hold": True},
    {"request": f"PUT {CONFIG}", "hold": True},
]


@pytest.mark.parametrize("step", STEPS_OF_A_CREATE, ids=str)
def test_daemon_killed_while_it_creates_a_warm_ct(
    machine: Machine, embedded: EmbeddedNode, warmed: CriClient, step: dict[str, object]
) -> None:
    warmed.run_pod()
    first_waiting(machine)
    warmed.run_pod()
    vmid = first_waiting(machine)
    embedded.fault(**step)
    pod = warmed.run_pod() if "task" in step else ""
    if not pod:  # its claim would wait for the same request: end the CT that waits instead
        machine.node.task("POST", f"/lxc/{vmid}/status/stop")
    eventually(embedded.holds, "the step is reached")
    machine.kill()
    embedded.clear_faults()
    machine.start(proxmox=WARM)
    eventually(lambda: settled(machine), "one CT waits, and none is left")


def test_daemon_killed_while_a_pod_claims_a_ct(
    machine: Machine, embedded: EmbeddedNode, warmed: CriClient
) -> None:
    warmed.run_pod()
    vmid = first_waiting(machine)
    embedded.fault(request=f"PUT {CONFIG}", hold=True)
    begin = pb.RunPodSandboxRequest(config=warmed.pod_config())
    call = warmed.runtime.RunPodSandbox.future(begin)
    eventually(lambda: vmid not in waiting(machine), "the CT is claimed")
    machine.kill()
    assert call.exception() is not None
    embedded.clear_faults()
    machine.start(proxmox=WARM)
    eventually(lambda: vmid not in machine.node.cts(), "the half-made pod is removed")
    eventually(lambda: settled(machine), "one CT waits, and none is left")
    assert len(machine.client.pods()) == 1


def test_cancelled_claim_leaves_nothing_and_frees_the_name(
    machine: Machine, embedded: EmbeddedNode, warmed: CriClient
) -> None:
    warmed.run_pod()
    vmid = first_waiting(machine)
    embedded.fault(request=f"PUT {CONFIG}", hold=True)
    config = warmed.pod_config()
    call = warmed.runtime.RunPodSandbox.future(pb.RunPodSandboxRequest(config=config))
    eventually(lambda: vmid not in waiting(machine), "the CT is claimed")
    call.cancel()
    embedded.clear_faults()
    eventually(lambda: vmid not in machine.node.cts(), "the CT is removed")
    warmed.run_pod(config)
    eventually(lambda: settled(machine), "one CT waits, and none is left")


@pytest.mark.parametrize("seed", range(2))
def test_daemon_killed_at_random_times_loses_and_leaves_nothing(
    machine: Machine, warmed: CriClient, seed: int
) -> None:
    chance = random.Random(seed)
    with ThreadPoolExecutor(4) as threads:
        for _ in range(4):
            for kind in ("plain", "plain", "privileged", "host network"):
                threads.submit(live, machine, KINDS[kind])
            time.sleep(chance.uniform(0.02, 0.8))  # the moment is what is tried, nothing waits for it
            machine.kill()
            machine.start(proxmox=WARM)
    for pod in machine.client.pods():
        machine.client.remove_pod(pod.id)
    machine.stop()
    machine.start()
    machine.wait_until_nothing_left()
    eventually(lambda: not machine.node.cts() & set(machine.vmids), "no CT is left")


def live(machine: Machine, security: dict[str, Any]) -> None:
    cri = machine.client
    with suppress(grpc.RpcError, ValueError):  # ValueError: the channel was closed with the daemon's end
        pod = cri.run_pod(cri.pod_config(linux=pod_security(**security)))
        cri.exec(cri.run(pod, "sleep", "1000"), "true")
        cri.remove_pod(pod)


# -- Proxmox and its operator -------------------------------------------------------------------------------------


def stop_by_hand(machine: Machine, vmid: int) -> None:
    machine.node.task("POST", f"/lxc/{vmid}/status/stop")


def destroy_by_hand(machine: Machine, vmid: int) -> None:
    machine.node.remove_ct(vmid)


@pytest.mark.parametrize("end", [stop_by_hand, destroy_by_hand])
def test_ct_that_an_operator_ends_is_replaced(
    machine: Machine, warmed: CriClient, end: Callable[[Machine, int], None]
) -> None:
    warmed.run_pod()
    vmid = first_waiting(machine)
    end(machine, vmid)
    eventually(lambda: vmid not in waiting(machine) and settled(machine), "another CT waits")
    assert vmid not in machine.node.cts()


def test_pod_does_not_get_a_ct_that_an_operator_has_changed(machine: Machine, warmed: CriClient) -> None:
    warmed.run_pod()
    vmid = first_waiting(machine)
    machine.node.request("PUT", f"/nodes/{machine.node.name}/lxc/{vmid}/config", onboot=1)
    pod = warmed.run_pod()
    assert warmed.vmid(pod) != vmid
    assert re.search("gets a new CT: .*modified configuration", machine.daemon.log.read_text())
    eventually(lambda: settled(machine), "the changed CT is replaced")


def test_claim_that_proxmox_refuses_costs_the_pod_nothing(
    machine: Machine, embedded: EmbeddedNode, warmed: CriClient
) -> None:
    warmed.run_pod()
    vmid = first_waiting(machine)
    embedded.fault(request=f"PUT {CONFIG}", status=500, text="not now")
    pod = warmed.run_pod()
    assert warmed.vmid(pod) != vmid
    eventually(lambda: settled(machine), "the refused CT is replaced")


def record_commands(machine: Machine, failing: str = "") -> Path:
    """Add a CNI plugin to the network that writes its commands to the file that is returned; `failing` fails."""
    commands = machine.directory / "commands"
    commands.unlink(missing_ok=True)
    error = '{"cniVersion": "1.0.0", "code": 11, "msg": "no addresses left"}'
    script = f"""echo $CNI_COMMAND $CNI_CONTAINERID >> {commands}
    [ $CNI_COMMAND != "{failing}" ] || {{ echo '{error}'; exit 1; }}
    [ $CNI_COMMAND != ADD ] || cat"""
    machine.write_network(machine.write_plugin("recorder", script))
    return commands


def test_network_is_attached_beside_the_claim_and_detached_if_the_claim_fails(
    machine: Machine, embedded: EmbeddedNode, warmed: CriClient
) -> None:
    """Detached before the pod gets another CT: portmap would map the host port twice."""
    warmed.run_pod()
    vmid = first_waiting(machine)
    commands = record_commands(machine)
    embedded.fault(request=f"PUT /nodes/[^/]+/lxc/{vmid}/config", hold=True)
    mapping = pb.PortMapping(container_port=80, host_port=18_083)
    config = warmed.pod_config(port_mappings=[mapping])
    call = warmed.runtime.RunPodSandbox.future(pb.RunPodSandboxRequest(config=config))
    eventually(embedded.holds, "the PUT is held")
    eventually(commands.exists, "CNI ADD runs")
    embedded.clear_faults()  # the PUT gets no answer
    pod = call.result().pod_sandbox_id
    assert warmed.vmid(pod) != vmid
    (add, first), (delete, same), (again, last) = (line.split() for line in commands.read_text().splitlines())
    assert (add, delete, again) == ("ADD", "DEL", "ADD")
    assert (first, last) == (same, pod)
    assert first != pod
    eventually(lambda: settled(machine), "the refused CT is replaced")


def test_error_of_a_plugin_removes_the_claimed_ct(
    machine: Machine, embedded: EmbeddedNode, warmed: CriClient
) -> None:
    warmed.run_pod()
    vmid = first_waiting(machine)
    record_commands(machine, failing="ADD")
    config = warmed.pod_config()
    with refused(grpc.StatusCode.INTERNAL, "CNI plugin recorder .*: ADD: .*no addresses left"):
        warmed.run_pod(config)
    eventually(lambda: vmid not in machine.node.cts(), "the claimed CT is destroyed")
    machine.write_network()
    warmed.run_pod(config)
    eventually(lambda: settled(machine), "one CT waits, and none is left")


def test_pool_waits_for_a_proxmox_that_is_down(
    machine: Machine, embedded: EmbeddedNode, warmed: CriClient
) -> None:
    warmed.run_pod()
    first_waiting(machine)
    embedded.stop()
    with refused(grpc.StatusCode.UNAVAILABLE, "Proxmox"):
        warmed.run_pod()
    embedded.start()
    warmed.run_pod()
    eventually(lambda: settled(machine), "one CT waits, and none is left")


def test_waiting_cts_give_way_to_pods_that_find_no_vmid(machine: Machine) -> None:
    first = machine.vmids[0]
    vmid_range = f"vmid_range = {{first = {first}, last = {first + 2}}}"
    with machine.restarted(proxmox=f"{WARM}\n{vmid_range}") as cri:
        cri.run_pod()
        first_waiting(machine)
        privileged = [cri.run_pod(cri.pod_config(linux=pod_security(privileged=True))) for _ in range(2)]
        assert len(machine.node.cts() & set(machine.vmids)) == 3
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "all 3 VMIDs"):
            cri.run_pod()
        cri.remove_pod(privileged[0])
        cri.run_pod()
