# SPDX-License-Identifier: Apache-2.0
"""The daemon is killed and started again: running pods are adopted, half-created ones removed."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest
from support.cri_client import CriClient, eventually, pod_security, security
from support.daemon import Machine, forget_pods
from support.machine_node import EmbeddedNode

from pvecri.cri.proto import cri_pb2 as pb


def crash(machine: Machine) -> CriClient:
    """Kill the daemon and start it again."""
    machine.kill()
    machine.start()
    return machine.client


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_pods_and_containers_run_without_the_daemon(
    machine: Machine, cri: CriClient, ending: signal.Signals
) -> None:
    pod = cri.run_pod()
    container = cri.run(pod, "sleep", "1000")
    before, processes = cri.status(container), machine.processes(pod, container)
    machine.stop(ending)
    machine.start()
    cri = machine.client
    assert [(each.id, each.state) for each in cri.pods()] == [(pod, pb.SANDBOX_READY)]
    assert cri.status(container) == before
    assert machine.processes(pod, container) == processes
    assert cri.output(container, "echo", "still here") == "still here\n"


def test_exit_of_an_adopted_container_is_recorded(machine: Machine, cri: CriClient) -> None:
    pod = cri.run_pod()
    container = cri.run(pod, "sh", "-c", "trap 'exit 9' TERM; echo ready; while true; do usleep 10000; done")
    eventually(lambda: "ready" in cri.text(container), "it listens")
    cri = crash(machine)
    cri.stop(container, timeout=100)
    assert cri.status(container).exit_code == 9


def test_container_that_ended_without_the_daemon_has_its_exit_code_and_time(
    machine: Machine, cri: CriClient
) -> None:
    pod = cri.run_pod()
    container = cri.run(pod, "sh", "-c", "until [ -e /tmp/end ]; do usleep 10000; done; exit 5")
    root = Path(f"/proc/{machine.processes(pod, container)[0]}/root")
    machine.kill()
    (root / "tmp/end").touch()
    eventually(lambda: not machine.processes_of(container), "it has ended")
    machine.start()
    status = machine.client.wait_for_exit(container)
    assert (status.exit_code, status.reason) == (5, "Error")
    assert status.finished_at >= status.started_at > 0


def test_a_created_container_can_still_be_started(machine: Machine, cri: CriClient) -> None:
    container = cri.create(cri.run_pod(), cri.container_config("echo", "hello"))
    cri = crash(machine)
    cri.start(container)
    cri.wait_for_exit(container)
    assert cri.text(container) == "hello\n"


def test_container_can_be_created_in_an_adopted_pod(machine: Machine, cri: CriClient) -> None:
    pod = cri.run_pod()
    cri = crash(machine)
    assert cri.finish(pod, "echo", "hello") == "hello\n"


@pytest.mark.parametrize("kind", ["privileged", "host"])
def test_pods_of_every_kind_are_adopted(machine: Machine, cri: CriClient, kind: str) -> None:
    options = pb.NamespaceOption(network=pb.NODE, pid=pb.NODE, ipc=pb.NODE) if kind == "host" else None
    pod = cri.run_pod(cri.pod_config(linux=pod_security(privileged=True, namespace_options=options)))
    container = cri.run(pod, "sleep", "1000", linux=security(namespace_options=options))
    cri = crash(machine)
    assert cri.output(container, "echo", "still here") == "still here\n"
    cri.stop(container)
    assert cri.status(container).exit_code == 137


@pytest.mark.parametrize("task", ["vzcreate", "vzstart"])
def test_half_created_pod_is_removed(machine: Machine, embedded: EmbeddedNode, cri: CriClient, task: str) -> None:
    embedded.fault(task=task, hold=True)
    call = cri.runtime.RunPodSandbox.future(pb.RunPodSandboxRequest(config=cri.pod_config()))
    eventually(lambda: machine.node.cts() & set(machine.vmids), "the CT is being made")
    machine.kill()
    assert call.exception()
    embedded.clear_faults()
    machine.start()
    eventually(lambda: not machine.client.pods(), "the half-made pod is removed")
    machine.assert_nothing_left()


def test_sigterm_does_not_wait_for_proxmox(machine: Machine, embedded: EmbeddedNode, cri: CriClient) -> None:
    embedded.fault(task="vzcreate", hold=True)
    call = cri.runtime.RunPodSandbox.future(pb.RunPodSandboxRequest(config=cri.pod_config()))
    eventually(lambda: machine.node.cts() & set(machine.vmids), "the CT is being made")
    assert machine.stop() == 0
    assert call.exception()
    embedded.clear_faults()
    machine.start()
    eventually(lambda: not machine.client.pods(), "the half-made pod is removed")
    machine.assert_nothing_left()


def test_removal_that_was_cut_off_can_be_repeated(machine: Machine, cri: CriClient) -> None:
    begun, go_on = machine.directory / "begun-del", machine.directory / "go-on-del"
    wait = f"touch {begun}; until [ -e {go_on} ]; do sleep 0.01; done"
    machine.write_network(machine.write_plugin("slow", f"case $CNI_COMMAND in ADD) cat ;; DEL) {wait} ;; esac"))
    pod = cri.run_pod()
    cri.run(pod, "sleep", "1000")
    call = cri.runtime.RemovePodSandbox.future(pb.RemovePodSandboxRequest(pod_sandbox_id=pod))
    eventually(begun.exists, "the removal is under way")
    machine.kill()
    assert call.exception()
    go_on.touch()
    machine.start()
    machine.client.remove_pod(pod)
    assert machine.client.pods() == []
    machine.assert_nothing_left()


def test_half_attached_network_is_detached_after_its_plugin_has_exited(machine: Machine, cri: CriClient) -> None:
    """The address is taken only after the daemon has died, and after its successor has begun to clean up."""
    begun, go_on = machine.directory / "begun", machine.directory / "go-on"
    lease = machine.leases / "pvt/10.209.77.77"
    wait = f"touch {begun}; until [ -e {go_on} ]; do sleep 0.01; done; echo taken >{lease}"
    script = f"case $CNI_COMMAND in ADD) {wait} ;; DEL) rm -f {lease} ;; esac"
    machine.write_network(machine.write_plugin("slow", script))
    call = cri.runtime.RunPodSandbox.future(pb.RunPodSandboxRequest(config=cri.pod_config()))
    eventually(begun.exists, "the plugin has begun")
    machine.kill()
    assert call.exception()
    machine.start()
    assert len(machine.client.pods()) == 1
    go_on.touch()
    eventually(lambda: not machine.client.pods(), "the half-made pod is removed")
    machine.assert_nothing_left()


def test_daemon_starts_without_proxmox_and_cleans_up_later(
    machine: Machine, embedded: EmbeddedNode, cri: CriClient
) -> None:
    pod = cri.run_pod()
    container = cri.run(pod, "sleep", "1000")
    embedded.stop()
    cri = crash(machine)
    assert cri.output(container, "echo", "still here") == "still here\n"
    embedded.start()
    eventually(machine.ready, "the runtime is ready")
    cri.remove_pod(pod)
    machine.assert_nothing_left()


def test_firewall_rules_of_pods_whose_rows_were_lost_are_removed(machine: Machine) -> None:
    def rules() -> list[str]:
        run = subprocess.run(["iptables", "-t", "nat", "-S"], capture_output=True, text=True, check=True)
        return [rule for rule in run.stdout.splitlines() if pod in rule]

    conflist = machine.conf_dir / "10-pvt.conflist"
    network = json.loads(conflist.read_text())
    network["plugins"][0]["ipMasq"] = True  # removed by DEL only while the network namespace exists
    conflist.write_text(json.dumps(network))
    pod = machine.client.run_pod(
        machine.client.pod_config(port_mappings=[pb.PortMapping(container_port=80, host_port=28080)])
    )
    vmid = machine.client.vmid(pod)
    assert rules()
    machine.kill()
    forget_pods(machine.state_dir / "pods.db")
    machine.start()
    machine.node.remove_ct(vmid)  # a CT without a record is left to a person
    machine.wait_until_nothing_left()
    assert rules() == []


def test_only_one_daemon_uses_a_state_directory(machine: Machine, cri: CriClient) -> None:
    run = machine.run_second_daemon()
    assert run.returncode == 1
    assert f"runtime.state_dir: another pvecri uses {machine.state_dir}" in run.stderr
    assert cri.pods() == []
