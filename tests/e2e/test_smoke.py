# SPDX-License-Identifier: Apache-2.0
"""The life of one pod with one container, from the CRI's socket to the Proxmox API."""

from __future__ import annotations

from support.cri_client import CriClient
from support.daemon import Machine

from pvecri.cri.proto import cri_pb2 as pb


def test_pod_runs_a_container_and_is_removed(machine: Machine, cri: CriClient) -> None:
    pod = cri.run_pod()
    container = cri.run(pod, "sh", "-c", "echo hello; exit 3")
    status = cri.wait_for_exit(container)
    assert (status.exit_code, cri.text(container)) == (3, "hello\n")
    cri.stop_pod(pod)
    assert cri.pod_status(pod).state == pb.SANDBOX_NOTREADY
    cri.remove_pod(pod)
    machine.assert_nothing_left()
