# SPDX-License-Identifier: Apache-2.0
"""Proxmox fails, refuses or is unreachable: status, message, and nothing left behind."""

from __future__ import annotations

import re
from collections.abc import Iterator

import grpc
import pytest
from support.cri_client import CriClient, eventually, refused
from support.daemon import Machine
from support.leaks import VMIDS
from support.machine_node import EmbeddedNode

from pvecri.cri.proto import cri_pb2 as pb
from pvecri.linux import cgroups


def condition(cri: CriClient, name: str) -> pb.RuntimeCondition:
    """One of the runtime's conditions."""
    conditions: list[pb.RuntimeCondition] = cri.runtime.Status(pb.StatusRequest()).status.conditions
    return next(each for each in conditions if each.type == name)


def test_unreachable_proxmox_is_unavailable_and_names_the_setting(
    machine: Machine, embedded: EmbeddedNode, cri: CriClient
) -> None:
    embedded.stop()
    with refused(grpc.StatusCode.UNAVAILABLE, r"cannot connect to https://127.*check proxmox\.url"):
        cri.run_pod()
    embedded.start()
    machine.wait_until_nothing_left()


def test_runtime_is_not_ready_without_proxmox(machine: Machine, embedded: EmbeddedNode, cri: CriClient) -> None:
    machine.restart()
    embedded.stop()
    machine.restart()
    cri = machine.client
    eventually(lambda: condition(cri, "ProxmoxReady").reason == "ProxmoxUnavailable", "the daemon has noticed")
    assert not condition(cri, "RuntimeReady").status
    assert "proxmox.url" in condition(cri, "RuntimeReady").message
    embedded.start()
    eventually(lambda: condition(cri, "RuntimeReady").status, "the runtime is ready again")


def test_refused_credentials_are_permission_denied(
    machine: Machine, embedded: EmbeddedNode, cri: CriClient
) -> None:
    embedded.fault(request="POST /nodes/[^/]+/lxc", status=401, text="invalid token value!", times=None)
    with refused(grpc.StatusCode.PERMISSION_DENIED, r"credentials .* were refused .*proxmox\.token_secret_file"):
        cri.run_pod()
    machine.assert_nothing_left()


def test_missing_privilege_is_permission_denied(machine: Machine, embedded: EmbeddedNode, cri: CriClient) -> None:
    words = "Permission check failed (/vms/1, VM.Allocate)"
    embedded.fault(request="POST /nodes/[^/]+/lxc", status=403, text=words, times=None)
    with refused(grpc.StatusCode.PERMISSION_DENIED, r"VM\.Allocate.*lacks the privilege"):
        cri.run_pod()
    machine.assert_nothing_left()


def test_error_of_a_refused_create_is_returned(machine: Machine, embedded: EmbeddedNode, cri: CriClient) -> None:
    embedded.fault(request="POST /nodes/[^/]+/lxc", status=500, text="storage is full", times=None)
    with refused(grpc.StatusCode.INTERNAL, r"create CT \d+: storage is full"):
        cri.run_pod()
    machine.assert_nothing_left()


def test_error_of_a_failed_create_task_is_returned(
    machine: Machine, embedded: EmbeddedNode, cri: CriClient
) -> None:
    embedded.fault(task="vzcreate", text="unable to create CT - disk quota exceeded")
    with refused(grpc.StatusCode.INTERNAL, r"CT \d+.*disk quota exceeded"):
        cri.run_pod()
    machine.assert_nothing_left()


def test_error_of_a_failed_start_task_is_returned_and_the_ct_destroyed(
    machine: Machine, embedded: EmbeddedNode, cri: CriClient
) -> None:
    embedded.fault(task="vzstart", text="startup for container failed")
    with refused(grpc.StatusCode.INTERNAL, r"CT \d+ did not start: startup for container failed"):
        cri.run_pod()
    machine.assert_nothing_left()


def test_ct_that_does_not_start_in_time_is_destroyed(machine: Machine, embedded: EmbeddedNode) -> None:
    machine.restart(runtime="start_timeout = 0.5")
    # The task holds the lock of the CT's config, so the daemon destroys the CT when it has ended.
    embedded.fault(task="vzstart", delay=3)
    with refused(
        grpc.StatusCode.DEADLINE_EXCEEDED, r"CT \d+ did not start within 0\.5 s \(runtime\.start_timeout\)"
    ):
        machine.client.run_pod()
    machine.wait_until_nothing_left()
    machine.restart()


@pytest.fixture
def two_vmids(machine: Machine) -> Iterator[CriClient]:
    """A client of a daemon that may use only the first two of its VMIDs."""
    machine.restart(proxmox=f"vmid_range = {{first = {VMIDS[0]}, last = {VMIDS[1]}}}")
    yield machine.client
    machine.clean()
    machine.restart()


def test_exhausted_vmid_range_is_resource_exhausted(machine: Machine, two_vmids: CriClient) -> None:
    pods = [two_vmids.run_pod(), two_vmids.run_pod()]
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, r"all 2 VMIDs .* are in use \(proxmox\.vmid_range"):
        two_vmids.run_pod()
    assert [pod.id for pod in two_vmids.pods()] == pods
    two_vmids.remove_pod(pods[0])
    two_vmids.run_pod()


def test_vmid_taken_by_another_guest_is_skipped(machine: Machine, two_vmids: CriClient) -> None:
    two_vmids.remove_pod(two_vmids.run_pod())
    machine.wait_for_removals()
    machine.node.make_ct(VMIDS[1])
    before = machine.node.ct(VMIDS[1], "config")
    pod = two_vmids.run_pod()
    assert two_vmids.vmid(pod) == VMIDS[0]
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "proxmox.vmid_range"):
        two_vmids.run_pod()
    assert machine.node.ct(VMIDS[1], "config") == before


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("dataset is busy", "dataset is busy"),
        # After ten seconds on Proxmox.
        ("can't lock file '/var/lock/pve-manager/pve-storage-local' - got timeout", "`lslocks`"),
    ],
)
def test_ct_that_cannot_be_destroyed_is_reported_and_tried_again(
    machine: Machine, embedded: EmbeddedNode, cri: CriClient, text: str, remedy: str
) -> None:
    pod = cri.run_pod()
    vmid = cri.vmid(pod)
    embedded.fault(task="vzdestroy", text=text, times=None)
    cri.remove_pod(pod)
    cri.remove_pod(pod)
    assert cri.pods() == []
    error = eventually(lambda: cri.removals()[vmid], "Status says why the CT is still there")
    assert re.search(rf"destroy CT {vmid}: {re.escape(text)}", error)
    assert remedy in error
    eventually(lambda: not condition(cri, "BackgroundWorkHealthy").status, "the condition says so")
    assert f"removal of CT {vmid} (pod " in condition(cri, "RuntimeReady").message
    embedded.clear_faults()
    machine.assert_nothing_left()


def test_inactive_storage_costs_one_failed_destroy_until_it_is_active_again(
    machine: Machine, embedded: EmbeddedNode, cri: CriClient
) -> None:
    pod = cri.run_pod()
    vmid = cri.vmid(pod)
    embedded.request("PUT", "/storage/local", disable=1)
    try:
        cri.remove_pod(pod)
        refusal = rf"destroy CT {vmid}: .*storage local is disabled"
        eventually(lambda: re.search(refusal, cri.removals()[vmid]), "the second try asks for the storage first")
        eventually(lambda: not condition(cri, "BackgroundWorkHealthy").status, "a third was made")
        failed = [status for status in embedded.tasks(vmid, "vzdestroy").values() if status != "OK"]
        assert failed == ["storage 'local' is disabled"]
    finally:
        embedded.request("PUT", "/storage/local", delete="disable")
    machine.assert_nothing_left()


def test_pod_stops_without_proxmox(machine: Machine, embedded: EmbeddedNode, cri: CriClient) -> None:
    pod = cri.run_pod()
    vmid = cri.vmid(pod)
    container = cri.run(pod, "sleep", "1000")
    embedded.stop()
    cri.stop_pod(pod)
    assert cri.status(container).exit_code == 137
    assert cri.pod_status(pod).state == pb.SANDBOX_NOTREADY
    assert cgroups.detect().processes(f"/lxc/{vmid}") == []
    embedded.start()
    assert embedded.ct(vmid, "status/current")["status"] == "stopped"
    cri.remove_pod(pod)
    machine.assert_nothing_left()


def test_stop_of_a_pod_is_no_task_of_proxmox(machine: Machine, cri: CriClient, pod: str) -> None:
    vmid = cri.vmid(pod)
    before = set(machine.node.tasks(vmid, "vzstop"))  # of earlier CTs with this VMID
    cri.stop_pod(pod)
    eventually(
        lambda: machine.node.ct(vmid, "status/current")["status"] == "stopped", "Proxmox shows it as stopped"
    )
    assert set(machine.node.tasks(vmid, "vzstop")) == before


def test_ct_with_a_hookscript_is_stopped_by_proxmox(
    machine: Machine, embedded: EmbeddedNode, cri: CriClient, pod: str
) -> None:
    """Which runs the hookscript with `pre-stop` while the CT still runs."""
    vmid = cri.vmid(pod)
    before = embedded.tasks(vmid, "vzstop")
    embedded.stop()  # it reads its configs when it starts
    [config] = embedded.state_dir.glob(f"pve/nodes/*/lxc/{vmid}.conf")
    config.write_text(f"{config.read_text()}hookscript: local:snippets/hook.pl\n")
    embedded.start()
    embedded.fault(task="vzstop", text="CT is stuck")
    with refused(grpc.StatusCode.INTERNAL, r"stop CT \d+: CT is stuck"):
        cri.stop_pod(pod)
    cri.stop_pod(pod)
    after = embedded.tasks(vmid, "vzstop")
    assert sorted(after[upid] for upid in after.keys() - before.keys()) == ["CT is stuck", "OK"]
    cri.remove_pod(pod)
    machine.assert_nothing_left()


def test_container_calls_work_without_proxmox(embedded: EmbeddedNode, cri: CriClient) -> None:
    pod = cri.run_pod()
    embedded.stop()
    assert cri.finish(pod, "echo", "hello") == "hello\n"
    assert cri.pod_status(pod).state == pb.SANDBOX_READY
    assert len(cri.pods()) == 1


@pytest.mark.parametrize("restart", [False, True])
def test_failed_tags_do_not_fail_the_pod_and_are_retried(
    machine: Machine, embedded: EmbeddedNode, cri: CriClient, restart: bool
) -> None:
    embedded.fault(request="PUT /nodes/[^/]+/lxc/[0-9]+/config", status=500, text="no tags today", times=None)
    pod = cri.run_pod()
    eventually(lambda: "setting proxmox.tags of CT " in machine.daemon.log.read_text(), "the failure is logged")
    assert "tags" not in machine.node.ct(cri.vmid(pod), "config")
    embedded.clear_faults()
    if restart:
        machine.restart()
        cri = machine.client
    eventually(lambda: machine.node.ct(cri.vmid(pod), "config").get("tags") == "pvecri", "the CT has its tags")


def test_pod_whose_ct_was_destroyed_by_hand_can_be_removed(machine: Machine, cri: CriClient) -> None:
    pod = cri.run_pod()
    vmid = cri.vmid(pod)
    machine.node.remove_ct(vmid)
    eventually(lambda: cri.pod_status(pod).state == pb.SANDBOX_NOTREADY, "the daemon has noticed")
    cri.stop_pod(pod)
    cri.remove_pod(pod)
    assert pod not in {each.id for each in cri.pods()}
