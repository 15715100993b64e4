# SPDX-License-Identifier: Apache-2.0
"""A cluster that has lost its quorum: /etc/pve is read-only, and what runs goes on.

The words are Proxmox's own: no call for CTs asks for the quorum first, each fails where it writes the CT's config
(PVE::Cluster, cfs_write_file; PVE::File, file_set_contents).
"""

from __future__ import annotations

import grpc
from support.cri_client import CriClient, eventually, refused
from support.daemon import Machine
from support.machine_node import EmbeddedNode

from pvecri.cri.proto import cri_pb2 as pb

READ_ONLY = "unable to open file '/etc/pve/nodes/pve/lxc/1.conf.tmp.4711' - Permission denied"


def lose_quorum(embedded: EmbeddedNode) -> None:
    """Until `clear_faults`."""
    refusal = f"unable to create CT 1 - {READ_ONLY}"
    embedded.fault(request="POST /nodes/[^/]+/lxc", status=500, text=refusal, times=None)
    embedded.fault(request="PUT /nodes/[^/]+/lxc/[0-9]+/config", status=500, text=READ_ONLY, times=None)
    embedded.fault(task="vzdestroy", text=READ_ONLY, times=None)


def test_new_pod_is_unavailable_and_leaves_nothing(
    machine: Machine, cri: CriClient, embedded: EmbeddedNode
) -> None:
    lose_quorum(embedded)
    with refused(grpc.StatusCode.UNAVAILABLE, r"Permission denied.*no quorum: `pvecm status`"):
        cri.run_pod()
    machine.assert_nothing_left()


def test_pods_run_on_and_end_and_go_once_there_is_a_quorum(
    machine: Machine, cri: CriClient, pod: str, embedded: EmbeddedNode
) -> None:
    container = cri.run(pod, "sleep", "1000")
    lose_quorum(embedded)

    assert cri.output(container, "echo", "on") == "on\n"
    vmid = cri.vmid(pod)
    cri.remove_pod(pod)
    assert cri.pods() == []
    error = eventually(lambda: cri.removals()[vmid], "Status says why the CT is still there")
    assert "no quorum: `pvecm status`" in error

    embedded.clear_faults()
    machine.assert_nothing_left()


def test_resize_is_refused_and_can_be_repeated(cri: CriClient, pod: str, embedded: EmbeddedNode) -> None:
    lose_quorum(embedded)
    wanted = pb.UpdatePodSandboxResourcesRequest(
        pod_sandbox_id=pod, resources=pb.LinuxContainerResources(memory_limit_in_bytes=256 << 20)
    )
    with refused(grpc.StatusCode.UNAVAILABLE, r"no quorum: `pvecm status`"):
        cri.runtime.UpdatePodSandboxResources(wanted)
    embedded.clear_faults()
    cri.runtime.UpdatePodSandboxResources(wanted)
