# SPDX-License-Identifier: Apache-2.0
"""A pod's VMID belongs to a CT of another node of the cluster: that CT is left as it is, the pod can go."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cri_client import CriClient, eventually
from support.daemon import Machine
from support.machine_node import EmbeddedNode

from pvecri.cri.proto import cri_pb2 as pb


@pytest.fixture
def other_node(machine: Machine, embedded: EmbeddedNode) -> Iterator[Path]:
    """The directory of CT configs of a node that is not running, such as one that was removed from the cluster."""
    directory = embedded.state_dir / "pve/nodes/other/lxc"
    directory.mkdir(parents=True)
    try:
        yield directory
    finally:
        embedded.stop()
        for config in directory.iterdir():  # their volumes are on this machine: its own node removes them
            config.rename(own_config(embedded, int(config.stem)))
        shutil.rmtree(directory.parent)
        embedded.start()
        for vmid in machine.node.cts():
            machine.node.remove_ct(vmid)


def own_config(embedded: EmbeddedNode, vmid: int) -> Path:
    return embedded.state_dir / f"pve/nodes/{embedded.name}/lxc/{vmid}.conf"


def test_pod_whose_stopped_ct_was_migrated_can_be_removed(
    machine: Machine, embedded: EmbeddedNode, cri: CriClient, pod: str, other_node: Path
) -> None:
    vmid = cri.vmid(pod)
    machine.node.task("POST", f"/lxc/{vmid}/status/stop")
    eventually(lambda: cri.pod_status(pod).state == pb.SANDBOX_NOTREADY, "the pod is not ready")
    embedded.stop()
    config = own_config(embedded, vmid).rename(other_node / f"{vmid}.conf")
    before = config.read_text()
    embedded.start()
    eventually(machine.ready, "the runtime is ready")

    cri.remove_pod(pod)
    assert cri.pods() == []
    assert cri.vmid(cri.run_pod()) != vmid
    assert config.read_text() == before


def test_node_comes_back_when_its_pods_vmid_is_another_nodes(
    machine: Machine, embedded: EmbeddedNode, cri: CriClient, pod: str, container: str, other_node: Path
) -> None:
    vmid = cri.vmid(pod)
    machine.kill()
    notes = own_config(embedded, vmid).read_text()
    machine.node.remove_ct(vmid)
    embedded.stop()
    config = other_node / f"{vmid}.conf"
    config.write_text(notes)  # the worst case: also its notes are the pod's
    embedded.start()
    machine.start()
    cri = machine.client

    assert cri.pod_status(pod).state == pb.SANDBOX_NOTREADY
    assert cri.status(container).exit_code == 137
    cri.stop_pod(pod)
    cri.remove_pod(pod)
    assert cri.pods() == []
    assert cri.vmid(cri.run_pod()) != vmid
    assert config.read_text() == notes
