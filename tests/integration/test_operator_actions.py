# SPDX-License-Identifier: Apache-2.0
"""What an operator may do to a pod's CT in Proxmox, and what becomes of it (docs/operations/proxmox-ui.md)."""

from __future__ import annotations

import re

import pytest
from support.cri_client import CriClient, eventually
from support.daemon import Machine

from pvecri.cri.proto import cri_pb2 as pb


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
    assert len(re.findall(rf"WARNING .*CT {vmid} .*was started", machine.daemon.log.read_text())) == 1
    cri.remove_pod(pod)
    machine.assert_nothing_left()


def test_pod_whose_ct_was_started_again_can_be_removed_at_once(machine: Machine, cri: CriClient, pod: str) -> None:
    stop_by_hand(machine, cri, pod)
    machine.node.task("POST", f"/lxc/{cri.vmid(pod)}/status/start")
    cri.remove_pod(pod)
    machine.assert_nothing_left()
