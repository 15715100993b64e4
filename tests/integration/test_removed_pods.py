# SPDX-License-Identifier: Apache-2.0
"""A removed pod is gone for its client at once; its CT is destroyed later, whatever happens meanwhile."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest
from support.cri_client import CriClient, eventually
from support.daemon import Machine
from support.machine_node import EmbeddedNode
from support.processes import SOURCES

POINTS = {
    "before the CT's destroy": {"request": "DELETE /nodes/[^/]+/lxc/[0-9]+"},
    "during the destroy": {"task": "vzdestroy"},
    "after the destroy": {"request": "GET /nodes/[^/]+/tasks/[^/]+:vzdestroy:[^/]+/status"},
}
"""Where a removal is held, as faults of the embedded node."""


def hold(embedded: EmbeddedNode, point: str) -> None:
    """Hold the next removal of a CT there until the faults are cleared."""
    embedded.fault(**POINTS[point], hold=True)


def test_pod_of_the_same_name_is_created_while_the_ct_of_the_removed_one_is_destroyed(
    machine: Machine, embedded: EmbeddedNode, cri: CriClient
) -> None:
    config = cri.pod_config()
    pod = cri.run_pod(config)
    vmid = cri.vmid(pod)
    hold(embedded, "during the destroy")
    cri.stop_pod(pod)
    cri.remove_pod(pod)
    cri.remove_pod(pod)
    assert cri.pods() == []
    eventually(embedded.holds, "the CT is being destroyed")
    assert cri.removals() == {vmid: ""}
    again = cri.run_pod(config)
    assert again != pod
    assert cri.vmid(again) != vmid
    assert [each.id for each in cri.pods()] == [again]
    embedded.clear_faults()
    eventually(lambda: vmid not in machine.node.cts(), "the CT is destroyed")
    cri.remove_pod(again)
    machine.assert_nothing_left()


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_next_daemon_destroys_the_ct_of_a_removed_pod(
    machine: Machine, embedded: EmbeddedNode, cri: CriClient, ending: signal.Signals, point: str
) -> None:
    pod = cri.run_pod()
    cri.run(pod, "sleep", "1000")
    hold(embedded, point)
    cri.remove_pod(pod)
    eventually(embedded.holds, "the removal is held")
    machine.stop(ending)
    embedded.clear_faults()
    machine.start()
    assert machine.client.pods() == []
    machine.assert_nothing_left()


def test_pods_are_removed_without_proxmox_and_their_cts_once_it_answers(
    machine: Machine, embedded: EmbeddedNode, cri: CriClient
) -> None:
    pods = [cri.run_pod() for _ in range(3)]
    vmids = {cri.vmid(pod) for pod in pods}
    embedded.stop()
    for pod in pods:
        cri.stop_pod(pod)
        cri.remove_pod(pod)
    assert cri.pods() == []
    assert cri.removals().keys() == vmids
    eventually(lambda: all("proxmox.url" in error for error in cri.removals().values()), "Status says why")
    machine.kill()
    machine.start()
    assert machine.client.removals().keys() == vmids
    embedded.start()
    machine.assert_nothing_left()


def test_pod_that_finds_no_vmid_waits_for_the_ct_of_a_removed_one(machine: Machine) -> None:
    one = machine.vmids[0]
    with machine.restarted(proxmox=f"vmid_range = {{first = {one}, last = {one}}}") as cri:
        for _ in range(3):
            pod = cri.run_pod()
            assert cri.vmid(pod) == one
            cri.remove_pod(pod)


def command(machine: Machine, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `pvecri` with the daemon's configuration."""
    program = [sys.executable, "-m", "pvecri", "--config", str(machine.directory / "config.toml")]
    environment = {**os.environ, "PYTHONPATH": SOURCES}
    return subprocess.run([*program, *arguments], env=environment, capture_output=True, text=True, check=False)


def protect(machine: Machine, vmid: int, value: int) -> None:
    """Set the option by which Proxmox refuses a destroy, as with `pct set VMID --protection VALUE`."""
    machine.node.request("PUT", f"/nodes/{machine.node.name}/lxc/{vmid}/config", protection=value)


def test_commands_show_the_ct_of_a_removed_pod_and_repair_leaves_it(
    machine: Machine, cri: CriClient, pod: str
) -> None:
    vmid, name = cri.vmid(pod), cri.pod_status(pod).metadata.name
    protect(machine, vmid, 1)
    cri.remove_pod(pod)
    eventually(lambda: cri.removals()[vmid], "a try has failed")
    shown = command(machine, "status").stdout
    assert re.search(rf"^removed +CT {vmid} \(pod {name}_.*\): .*protection mode enabled", shown, re.MULTILINE)
    assert "0 ready, 0 not ready" in shown
    assert name not in command(machine, "pods").stdout
    assert f"warning: store: CT {vmid} of a removed pod is not destroyed yet" in command(machine, "check").stdout
    refused = command(machine, "repair", "--destroy", str(vmid))
    assert (refused.returncode, "that of the removed pod" in refused.stderr) == (1, True), refused.stderr
    protect(machine, vmid, 0)
    machine.assert_nothing_left()


def test_ct_of_a_removed_pod_that_is_destroyed_by_hand_is_forgotten(machine: Machine, cri: CriClient) -> None:
    pod = cri.run_pod()
    vmid = cri.vmid(pod)
    protect(machine, vmid, 1)
    cri.remove_pod(pod)
    eventually(lambda: cri.removals()[vmid], "a try has failed")
    machine.kill()
    protect(machine, vmid, 0)
    machine.node.remove_ct(vmid)
    machine.start()
    machine.assert_nothing_left()
