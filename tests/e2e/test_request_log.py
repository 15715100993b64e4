# SPDX-License-Identifier: Apache-2.0
"""The daemon's log of one request, found by its ID."""

from __future__ import annotations

import secrets

from support.cri_client import CriClient, eventually
from support.daemon import Machine

from pvecri.cri.proto import cri_pb2 as pb


def metadata(trace: str) -> tuple[tuple[str, str], ...]:
    return (("traceparent", f"00-{trace}-{secrets.token_hex(8)}-01"),)


def lines_with(machine: Machine, text: str) -> list[str]:
    return [line for line in machine.daemon.log.read_text().splitlines() if text in line]


def test_log_of_a_pod_is_found_by_the_id_of_its_request(machine: Machine, cri: CriClient) -> None:
    trace = secrets.token_hex(16)
    request = pb.RunPodSandboxRequest(config=cri.pod_config())
    pod = cri.runtime.RunPodSandbox(request, metadata=metadata(trace)).pod_sandbox_id

    def ended() -> bool:
        return any("RunPodSandbox: OK in" in line for line in lines_with(machine, f"request_id={trace}"))

    eventually(ended, "the call is logged")
    lines = "\n".join(lines_with(machine, f"request_id={trace}"))
    assert f":vzcreate:{cri.vmid(pod)}:" in lines  # the task's UPID
    assert "pvecri.linux.programs: bridge: process " in lines  # the CNI plugin


def test_log_of_a_containers_end_names_the_call_that_started_it(machine: Machine, cri: CriClient) -> None:
    trace = secrets.token_hex(16)
    container = cri.create(cri.run_pod(), cri.container_config("true"))
    cri.runtime.StartContainer(pb.StartContainerRequest(container_id=container), metadata=metadata(trace))

    def released() -> bool:
        return any(
            f" delete --force {container}: process" in line for line in lines_with(machine, f"caused_by={trace}")
        )

    eventually(released, "the end of the container is logged")
