# SPDX-License-Identifier: Apache-2.0
"""Parts of a pod end without the daemon: by hand, by a crash, by a reboot."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from support.cri_client import CriClient, eventually, pod_security, security
from support.daemon import Machine
from support.machine_node import EmbeddedNode

from pvecri.cri.proto import cri_pb2 as pb
from pvecri.linux import cgroups, processes


def stop_by_hand(machine: Machine, vmid: int) -> None:
    """As with the stop button of Proxmox's UI."""
    machine.node.request("POST", f"/nodes/{machine.node.name}/lxc/{vmid}/status/stop")


def wait_until_not_ready(cri: CriClient, pod: str) -> None:
    eventually(lambda: cri.pod_status(pod).state == pb.SANDBOX_NOTREADY, "the pod is not ready")


def test_ct_stopped_by_hand_ends_the_pod(machine: Machine, cri: CriClient, pod: str, container: str) -> None:
    stop_by_hand(machine, cri.vmid(pod))
    wait_until_not_ready(cri, pod)
    status = cri.wait_for_exit(container)
    assert (status.exit_code, status.reason) == (137, "Error")
    cri.stop_pod(pod)
    cri.remove_pod(pod)
    machine.assert_nothing_left()


@pytest.mark.parametrize("away", [False, True])
def test_containers_in_the_nodes_pid_namespace_end_with_their_ct(
    machine: Machine, cri: CriClient, away: bool
) -> None:
    options = pb.NamespaceOption(pid=pb.NODE)
    pod = cri.run_pod(cri.pod_config(linux=pod_security(namespace_options=options)))
    container = cri.run(pod, "sleep", "1000", linux=security(namespace_options=options))
    vmid = cri.vmid(pod)
    if away:
        machine.kill()
    stop_by_hand(machine, vmid)
    eventually(lambda: machine.node.ct(vmid, "status/current")["status"] == "stopped", "the CT is stopped")
    if away:
        machine.start()
        cri = machine.client
    wait_until_not_ready(cri, pod)
    assert cri.wait_for_exit(container).exit_code == 137
    assert machine.processes_of(container) == []


def test_ct_destroyed_by_hand_ends_the_pod(machine: Machine, cri: CriClient, pod: str, container: str) -> None:
    machine.node.remove_ct(cri.vmid(pod))
    wait_until_not_ready(cri, pod)
    assert cri.wait_for_exit(container).exit_code == 137
    cri.remove_pod(pod)
    machine.assert_nothing_left()


def test_reused_vmid_is_not_touched(machine: Machine, cri: CriClient, pod: str) -> None:
    vmid = cri.vmid(pod)
    machine.node.remove_ct(vmid)
    wait_until_not_ready(cri, pod)
    machine.node.make_ct(vmid)
    cri.remove_pod(pod)
    machine.wait_for_removals()
    assert vmid in machine.node.cts()
    machine.node.remove_ct(vmid)


def configure_by_hand(machine: Machine, vmid: int, **changes: object) -> None:
    """As with `pct set`."""
    machine.node.request("PUT", f"/nodes/{machine.node.name}/lxc/{vmid}/config", **changes)


def unlock_by_hand(embedded: EmbeddedNode, vmid: int) -> None:
    """As with `pct unlock`, which has no call of the API: the node reads its configs anew when it starts."""
    embedded.stop()
    [path] = embedded.state_dir.glob(f"pve/nodes/*/lxc/{vmid}.conf")
    path.write_text("".join(line for line in path.open() if not line.startswith("lock:")))
    embedded.start()


@pytest.mark.parametrize("changes", [{"delete": "description"}, {"description": "the shop's database"}])
def test_ct_whose_notes_were_changed_by_hand_goes_with_its_pod(
    machine: Machine, cri: CriClient, pod: str, changes: dict[str, object]
) -> None:
    configure_by_hand(machine, cri.vmid(pod), **changes)
    cri.stop_pod(pod)
    cri.remove_pod(pod)
    machine.assert_nothing_left()


def test_locked_ct_is_stopped_with_its_pod_and_destroyed_once_it_is_unlocked(
    machine: Machine, embedded: EmbeddedNode, cri: CriClient, pod: str
) -> None:
    vmid = cri.vmid(pod)
    before = set(machine.node.tasks(vmid))
    configure_by_hand(machine, vmid, lock="backup")
    cri.remove_pod(pod)
    assert cri.pods() == []
    error = eventually(lambda: cri.removals()[vmid], "Status says why the CT is still there")
    assert re.search(rf"destroy CT {vmid}: CT is locked \(backup\): .*pct unlock", error)
    assert set(machine.node.tasks(vmid)) == before, "no try was a task"
    unlock_by_hand(embedded, vmid)
    machine.assert_nothing_left()


def test_ct_that_ended_without_the_daemon_ends_the_pod(
    machine: Machine, cri: CriClient, pod: str, container: str
) -> None:
    vmid = cri.vmid(pod)
    machine.kill()
    stop_by_hand(machine, vmid)
    eventually(lambda: machine.node.ct(vmid, "status/current")["status"] == "stopped", "the CT is stopped")
    machine.start()
    cri = machine.client
    assert cri.pod_status(pod).state == pb.SANDBOX_NOTREADY
    assert cri.wait_for_exit(container).exit_code == 137
    cri.remove_pod(pod)
    machine.assert_nothing_left()


def test_a_conmon_that_is_killed_ends_its_container(
    machine: Machine, cri: CriClient, pod: str, container: str
) -> None:
    group = cgroups.detect().processes(f"/lxc/{cri.vmid(pod)}")
    (conmon,) = (pid for pid in group if processes.command_name(pid) == "conmon")
    os.kill(conmon, signal.SIGKILL)
    assert cri.wait_for_exit(container).exit_code == 137
    eventually(lambda: not machine.processes(pod, container), "its processes are gone")
    assert cri.pod_status(pod).state == pb.SANDBOX_READY
    assert cri.finish(pod, "echo", "next", attempt=1) == "next\n"


def test_a_container_process_that_is_killed_from_outside_is_recorded(
    machine: Machine, cri: CriClient, pod: str, container: str
) -> None:
    os.kill(machine.processes(pod, container)[0], signal.SIGKILL)
    assert cri.wait_for_exit(container).exit_code == 137


def test_the_api_process_of_the_node_can_be_restarted_while_pods_run(
    machine: Machine, embedded: EmbeddedNode, cri: CriClient, pod: str, container: str
) -> None:
    embedded.stop()
    embedded.start()
    assert cri.output(container, "echo", "still here") == "still here\n"
    cri.stop_pod(pod)
    cri.remove_pod(pod)
    machine.assert_nothing_left()


def test_pod_is_not_ready_after_a_reboot(
    machine: Machine, embedded: EmbeddedNode, cri: CriClient, pod: str, container: str
) -> None:
    created = cri.create(pod, cri.container_config("true", name="created"))
    vmid = cri.vmid(pod)
    machine.kill()
    embedded.stop()
    cgroups.detect().kill(f"/lxc/{vmid}")
    eventually(lambda: not cgroups.detect().processes(f"/lxc/{vmid}"), "all processes are gone")
    machine.forget_run_dir()
    embedded.start()
    machine.start()
    cri = machine.client
    assert cri.pod_status(pod).state == pb.SANDBOX_NOTREADY
    assert cri.wait_for_exit(container).exit_code == 137
    assert cri.status(created).state == pb.CONTAINER_EXITED
    cri.remove_pod(pod)
    machine.assert_nothing_left()


def test_name_of_an_ended_pod_stays_reserved(machine: Machine, cri: CriClient) -> None:
    config = cri.pod_config()
    pod = cri.run_pod(config)
    stop_by_hand(machine, cri.vmid(pod))
    wait_until_not_ready(cri, pod)
    config.metadata.attempt = 1
    cri.run_pod(config)
    assert {each.metadata.attempt for each in cri.pods()} == {0, 1}


def test_container_survives_removal_of_its_log_directory(
    machine: Machine, cri: CriClient, pod: str, container: str
) -> None:
    log = Path(cri.status(container).log_path)
    log.unlink()
    log.parent.rmdir()
    cri.stop(container)
    cri.remove(container)
