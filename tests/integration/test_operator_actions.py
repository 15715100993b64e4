# SPDX-License-Identifier: Apache-2.0
"""What an operator may do to a pod's CT in Proxmox, and what becomes of it (docs/operations/proxmox-ui.md)."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess

import pytest
from support.cri_client import CriClient, eventually
from support.daemon import Machine
from support.machine_node import SECOND_STORAGE, EmbeddedNode

from pvecri.cri.proto import cri_pb2 as pb
from pvecri.linux import cgroups

MIB = 1 << 20
LIMITED = pb.LinuxContainerResources(
    cpu_quota=150_000, cpu_period=100_000, cpu_shares=1024, memory_limit_in_bytes=64 * MIB
)


def ct_status(machine: Machine, vmid: int) -> object:
    """`running` or `stopped`."""
    return machine.node.ct(vmid, "status/current")["status"]


def stop_by_hand(machine: Machine, cri: CriClient, pod: str) -> None:
    """As with the button Stop, until the pod has ended."""
    machine.node.task("POST", f"/lxc/{cri.vmid(pod)}/status/stop")
    eventually(lambda: cri.pod_status(pod).state == pb.SANDBOX_NOTREADY, "the pod is not ready")


# -- started again ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("away", [False, True])
def test_ct_of_an_ended_pod_that_is_started_by_hand_is_stopped_again(
    machine: Machine, cri: CriClient, pod: str, away: bool
) -> None:
    vmid = cri.vmid(pod)
    if away:
        machine.kill()
        machine.node.task("POST", f"/lxc/{vmid}/status/stop")
    else:
        stop_by_hand(machine, cri, pod)
    machine.node.task("POST", f"/lxc/{vmid}/status/start")
    if away:
        machine.start()
        cri = machine.client
    eventually(lambda: ct_status(machine, vmid) == "stopped", "the CT is stopped again")
    assert cri.pod_status(pod).state == pb.SANDBOX_NOTREADY
    line = rf"WARNING .*CT {vmid} of pod {cri.pod_status(pod).metadata.name}_.* was started"
    found = eventually(lambda: re.findall(line, machine.daemon.log.read_text()), "it is logged")
    assert len(found) == 1
    cri.remove_pod(pod)
    machine.assert_nothing_left()


def test_pod_whose_ct_was_started_again_can_be_removed_at_once(machine: Machine, cri: CriClient, pod: str) -> None:
    stop_by_hand(machine, cri, pod)
    machine.node.task("POST", f"/lxc/{cri.vmid(pod)}/status/start")
    cri.remove_pod(pod)
    machine.assert_nothing_left()


# -- options changed -------------------------------------------------------------------------------------------


def configure(machine: Machine, vmid: int, **changes: object) -> None:
    """As in the pages Resources, Network and Options of the UI, or with `pct set`."""
    machine.node.request("PUT", f"/nodes/{machine.node.name}/lxc/{vmid}/config", **changes)


def config_of(machine: Machine, vmid: int) -> dict[str, object]:
    """Without what the daemon sets in the background, the notes and the tags, and without the digest."""
    config = machine.node.ct(vmid, "config")
    return {name: value for name, value in config.items() if name not in ("description", "digest", "tags")}


@pytest.fixture
def limited(cri: CriClient) -> str:
    """A pod with limits."""
    return cri.run_pod(cri.pod_config(linux=pb.LinuxPodSandboxConfig(resources=LIMITED)))


@pytest.mark.parametrize(
    "changes",
    [
        {"cores": 1},
        {"cpuunits": 1000},
        {"delete": "cpulimit,cpuunits"},
        {"memory": 128, "swap": 64, "cores": 1, "cpulimit": 0.5, "cpuunits": 7, "hostname": "database"},
    ],
    ids=" ".join,
)
def test_limits_and_name_that_were_changed_by_hand_are_put_back(
    machine: Machine, limited: str, changes: dict[str, object]
) -> None:
    vmid = machine.client.vmid(limited)
    before, usage = config_of(machine, vmid), machine.node.ct(vmid, "status/current")["maxmem"]
    configure(machine, vmid, **changes)
    assert config_of(machine, vmid) != before
    machine.restart()  # it looks at once, and each minute
    eventually(lambda: config_of(machine, vmid) == before, "they are as before")
    assert machine.node.ct(vmid, "status/current")["maxmem"] == usage
    names = sorted({*changes, *str(changes.get("delete", "")).split(",")} - {"delete", ""})
    shown = ", ".join(rf"{name} \S+" for name in names)
    line = rf"WARNING .*CT {vmid} .* was changed in Proxmox \({shown}\): put back"
    found = eventually(lambda: re.findall(line, machine.daemon.log.read_text()), "the change is logged")
    assert len(found) == 1


def test_tags_that_were_added_by_hand_stay_and_the_pods_own_come_back(
    machine: Machine, cri: CriClient, pod: str
) -> None:
    vmid = cri.vmid(pod)
    eventually(lambda: machine.node.ct(vmid, "config").get("tags") == "pvecri", "the CT has its tags")
    configure(machine, vmid, tags="gold;nightly")
    machine.restart()
    wanted = {"gold", "nightly", "pvecri"}  # Proxmox sorts them
    eventually(lambda: set(str(machine.node.ct(vmid, "config")["tags"]).split(";")) == wanted, "the tags are back")


@pytest.mark.parametrize("changes", [{"onboot": 1}, {"startup": "order=3"}, {"nameserver": "192.0.2.1"}])
def test_other_options_stay_as_they_were_set(machine: Machine, limited: str, changes: dict[str, object]) -> None:
    vmid = machine.client.vmid(limited)
    configure(machine, vmid, **changes)
    before = config_of(machine, vmid)
    # With a change that is put back, so that the CT was looked at.
    memory = before["memory"]
    configure(machine, vmid, memory=512)
    machine.restart()
    eventually(lambda: config_of(machine, vmid)["memory"] == memory, "the memory is put back")
    assert config_of(machine, vmid) == before
    machine.client.remove_pod(limited)
    machine.assert_nothing_left()


def test_ct_that_is_taken_out_of_the_pool_is_reported(
    machine: Machine, embedded: EmbeddedNode, cri: CriClient, pod: str
) -> None:
    vmid, pool = cri.vmid(pod), embedded.account.pool
    machine.node.request("PUT", f"/pools/{pool}", vms=vmid, delete=1)
    machine.restart()
    report = rf"WARNING .*CT {vmid} of pod .* runs, but Proxmox does not list it: .*proxmox.pool"
    eventually(lambda: re.search(report, machine.daemon.log.read_text()), "it is reported")
    machine.node.request("PUT", f"/pools/{pool}", vms=vmid)
    machine.client.remove_pod(pod)
    machine.assert_nothing_left()


# -- volumes added ---------------------------------------------------------------------------------------------


def failing(machine: Machine) -> str:
    """The background work that keeps failing, as `crictl info` shows it."""
    return str(json.loads(machine.client.runtime.Status(pb.StatusRequest(verbose=True)).info["failing"]))


def volumes(machine: Machine) -> set[str]:
    """The CTs' volumes on the node's storage."""
    listed = machine.node.request("GET", f"/nodes/{machine.node.name}/storage/local/content?content=rootdir")
    assert isinstance(listed, list)
    return {str(each["volid"]) for each in listed}


def test_volume_that_was_added_to_a_pods_ct_is_not_destroyed_with_it(
    machine: Machine, embedded: EmbeddedNode, cri: CriClient, pod: str
) -> None:
    vmid = cri.vmid(pod)
    configure(machine, vmid, mp0="local:1,mp=/data")
    volume = str(machine.node.ct(vmid, "config")["mp0"]).partition(",")[0]
    cri.remove_pod(pod)
    error = eventually(lambda: cri.removals()[vmid], "Status says why the CT is still there")
    assert re.search(rf"CT {vmid} .* volumes that were added .*mp0 {volume}", error)
    eventually(lambda: volume in failing(machine), "it is work that keeps failing")
    assert volume in volumes(machine)
    configure(machine, vmid, delete="mp0")
    configure(machine, vmid, delete="unused0")
    machine.assert_nothing_left()


# -- what ends the pod -----------------------------------------------------------------------------------------


def test_reboot_ends_the_pod_and_the_ct_that_it_starts_is_stopped(
    machine: Machine, cri: CriClient, pod: str, container: str
) -> None:
    vmid = cri.vmid(pod)
    machine.node.task("POST", f"/lxc/{vmid}/status/reboot", timeout=1)
    eventually(lambda: cri.pod_status(pod).state == pb.SANDBOX_NOTREADY, "the pod is not ready")
    assert cri.status(container).state == pb.CONTAINER_EXITED
    eventually(lambda: ct_status(machine, vmid) == "stopped", "the CT is stopped")
    cri.remove_pod(pod)
    machine.assert_nothing_left()


@pytest.mark.parametrize("start", [0, 1])
def test_rollback_ends_the_pod_and_a_snapshot_goes_with_it(
    machine: Machine, embedded: EmbeddedNode, start: int
) -> None:
    embedded.allow("KubeRootfs", **{"local-lvm": SECOND_STORAGE})
    proxmox = f'storage = "{SECOND_STORAGE}"\nrootfs_size_gib = 1'
    with machine.restarted(proxmox=proxmox) as cri:
        pod = cri.run_pod()
        vmid = cri.vmid(pod)
        machine.node.task("POST", f"/lxc/{vmid}/snapshot", snapname="s1")
        assert cri.finish(pod, "echo", "still here") == "still here\n"
        machine.node.task("POST", f"/lxc/{vmid}/snapshot/s1/rollback", start=start)
        eventually(lambda: cri.pod_status(pod).state == pb.SANDBOX_NOTREADY, "the pod is not ready")
        eventually(lambda: ct_status(machine, vmid) == "stopped", "the CT is stopped")
        cri.remove_pod(pod)
        machine.assert_nothing_left()


# -- HA ----------------------------------------------------------------------------------------------------------


def managed_by_ha(machine: Machine) -> dict[str, str]:
    """The requested states of the resources that HA manages."""
    listed = machine.node.request("GET", "/cluster/ha/resources")
    assert isinstance(listed, list)
    return {str(each["sid"]): str(each["state"]) for each in listed}


def test_pod_whose_ct_is_managed_by_ha_is_stopped_and_removed(
    machine: Machine, embedded: EmbeddedNode, cri: CriClient, pod: str, container: str
) -> None:
    vmid = cri.vmid(pod)
    machine.node.request("POST", "/cluster/ha/resources", sid=f"ct:{vmid}", state="started")
    runs_on(cri, pod, container)
    cri.stop_pod(pod)
    cri.remove_pod(pod)
    machine.assert_nothing_left()
    assert managed_by_ha(machine) == {}


def test_ct_of_an_ended_pod_that_ha_starts_again_is_stopped_for_good(
    machine: Machine, embedded: EmbeddedNode, cri: CriClient, pod: str
) -> None:
    vmid = cri.vmid(pod)
    machine.node.request("POST", "/cluster/ha/resources", sid=f"ct:{vmid}", state="started")
    init = cgroups.detect().processes(f"/lxc/{vmid}/ns")[0]
    machine.kill()  # else it may be faster than HA, and the CT is never started again
    os.kill(init, signal.SIGKILL)  # a crash
    eventually(lambda: cgroups.detect().processes(f"/lxc/{vmid}/ns") not in ([], [init]), "HA has started the CT")
    machine.start()
    cri = machine.client
    line = rf"CT {vmid} of pod \S+ was started after the pod had ended: stopped again"
    eventually(lambda: re.search(line, machine.daemon.log.read_text()), "the CT is stopped again")
    eventually(lambda: managed_by_ha(machine) == {f"ct:{vmid}": "stopped"}, "HA knows that it is to be stopped")
    assert ct_status(machine, vmid) == "stopped"
    cri.remove_pod(pod)
    machine.assert_nothing_left()


# -- what the pod survives -------------------------------------------------------------------------------------


def runs_on(cri: CriClient, pod: str, container: str) -> None:
    """The pod is ready and its container answers."""
    assert cri.pod_status(pod).state == pb.SANDBOX_READY
    assert cri.output(container, "echo", "still here") == "still here\n"


def refusal(machine: Machine, method: str, path: str, **parameters: object) -> str:
    """Why Proxmox refuses a call for a CT at once."""
    status, reason, body = machine.node._send(method, f"/nodes/{machine.node.name}/lxc/{path}", parameters)
    assert status >= 400, body
    return f"{reason} {body.decode()}"


def task_error(machine: Machine, method: str, path: str, **parameters: object) -> str:
    """How the task of a call for a CT fails."""
    upid = machine.node.request(method, f"/nodes/{machine.node.name}/lxc/{path}", **parameters)
    machine.node._finished(upid)
    status = machine.node.request("GET", f"/nodes/{machine.node.name}/tasks/{upid}/status")
    assert isinstance(status, dict)
    assert status["exitstatus"] != "OK"
    return str(status["exitstatus"])


def test_what_proxmox_itself_refuses_for_a_running_ct_does_nothing_to_its_pod(
    machine: Machine, embedded: EmbeddedNode, cri: CriClient, pod: str, container: str
) -> None:
    vmid = cri.vmid(pod)
    assert "container is running" in refusal(machine, "DELETE", str(vmid))
    assert "lxc-checkpoint" in task_error(machine, "POST", f"{vmid}/status/suspend")
    # As its root filesystem is a directory; on LVM-thin, ZFS, Btrfs and RBD it is taken.
    assert task_error(machine, "POST", f"{vmid}/snapshot", snapname="s1") == "snapshot feature is not available"
    assert "if the CT is running" in refusal(machine, "POST", f"{vmid}/template")
    assert "target is local node" in refusal(machine, "POST", f"{vmid}/migrate", target=machine.node.name)
    assert "password" in refusal(machine, "PUT", f"{vmid}/config", password="secret")
    runs_on(cri, pod, container)
    cri.remove_pod(pod)
    machine.assert_nothing_left()


@pytest.mark.parametrize(
    "changes",
    [
        {"features": "nesting=1"},
        {"net0": "name=eth7,bridge=pvt0,ip=manual"},
        {"searchdomain": "example.com"},
        {"console": 1, "tty": 2},
        {"description": "the shop's database"},
    ],
    ids=" ".join,
)
def test_pod_runs_on_after_a_change_of_an_option_and_goes_as_a_whole(
    machine: Machine, embedded: EmbeddedNode, cri: CriClient, pod: str, container: str, changes: dict[str, object]
) -> None:
    """Some of them are pending until the CT's next start, which a pod's never sees."""
    configure(machine, cri.vmid(pod), **changes)
    runs_on(cri, pod, container)
    cri.remove_pod(pod)
    machine.assert_nothing_left()


def test_firewall_that_was_enabled_goes_with_the_pod(
    machine: Machine, cri: CriClient, pod: str, container: str
) -> None:
    vmid = cri.vmid(pod)
    path = f"/nodes/{machine.node.name}/lxc/{vmid}/firewall"
    machine.node.request("PUT", f"{path}/options", enable=1)
    machine.node.request("POST", f"{path}/rules", type="in", action="DROP", enable=1)
    runs_on(cri, pod, container)
    cri.remove_pod(pod)
    machine.wait_for_removals()
    machine.node.make_ct(vmid)
    assert machine.node.request("GET", f"{path}/rules") == []
    machine.node.remove_ct(vmid)


def test_what_was_started_in_a_ct_by_hand_ends_with_the_pod(
    machine: Machine, cri: CriClient, pod: str, container: str
) -> None:
    """As with `pct enter`, `pct exec` and `pct push`: in the sandbox, beside the pod's containers."""
    vmid = cri.vmid(pod)
    attach = ["lxc-attach", "-P", str(machine.lxc_path), "-n", str(vmid), "--"]
    script = "touch /pushed; sleep 3210 >/dev/null 2>&1 & ls /; id -u"
    done = subprocess.run([*attach, "sh", "-c", script], capture_output=True, text=True, check=True)
    assert {"pushed", "0"} <= set(done.stdout.split())
    assert cri.output(container, "sh", "-c", "ls / | grep -c pushed || true") == "0\n"
    runs_on(cri, pod, container)
    cri.remove_pod(pod)
    machine.assert_nothing_left()


# -- what the destroy of a removed pod's CT waits for ---------------------------------------------------------


def test_protected_ct_is_stopped_with_its_pod_and_destroyed_once_protection_is_off(
    machine: Machine, cri: CriClient, pod: str
) -> None:
    vmid = cri.vmid(pod)
    configure(machine, vmid, protection=1)
    cri.stop_pod(pod)
    eventually(lambda: ct_status(machine, vmid) == "stopped", "Proxmox shows its end")
    before = set(machine.node.tasks(vmid, "vzdestroy"))  # of earlier CTs with this VMID
    cri.remove_pod(pod)
    assert cri.pods() == []
    error = eventually(lambda: cri.removals()[vmid], "Status says why the CT is still there")
    assert "protection mode enabled: `pct set VMID --protection 0`" in error
    assert set(machine.node.tasks(vmid, "vzdestroy")) == before
    configure(machine, vmid, protection=0)
    machine.assert_nothing_left()
