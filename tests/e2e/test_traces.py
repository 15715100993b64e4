# SPDX-License-Identifier: Apache-2.0
"""What a trace collector gets of a pod's life from the real daemon."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest
from support.collector import Collector, ReceivedSpan, running_collector
from support.cri_client import CriClient, eventually
from support.daemon import Machine

from pvecri.cri.proto import cri_pb2 as pb

SERVICE = "runtime.v1.RuntimeService"


@pytest.fixture
def collector(machine: Machine) -> Iterator[Collector]:
    """In the network namespace that `machine` has entered."""
    with running_collector() as collector:
        yield collector


@pytest.fixture
def traced(machine: Machine, collector: Collector) -> Iterator[CriClient]:
    """A client of a daemon that records what its callers record."""
    with machine.restarted(tracing=f'endpoint = "{collector.address}"') as cri:
        eventually(machine.ready, "the runtime is ready")
        yield cri


def received(collector: Collector, trace: str, root: str) -> list[ReceivedSpan]:
    """The spans of a trace, once that of the call is there."""

    def complete() -> list[ReceivedSpan]:
        found = collector.spans(trace)
        return found if any(each.name == f"{SERVICE}/{root}" for each in found) else []

    return eventually(complete, f"the span of {root} is received")


def test_a_pods_trace_has_proxmox_and_cni_below_the_kubelets_span(collector: Collector, traced: CriClient) -> None:
    trace, caller = secrets.token_hex(16), secrets.token_hex(8)
    request = pb.RunPodSandboxRequest(config=traced.pod_config())
    metadata = (("traceparent", f"00-{trace}-{caller}-01"),)
    pod = traced.runtime.RunPodSandbox(request, metadata=metadata).pod_sandbox_id
    spans = received(collector, trace, "RunPodSandbox")
    root = spans[-1]
    assert (root.name, root.parent) == (f"{SERVICE}/RunPodSandbox", caller)
    assert root.attributes == {"pod_id": pod, "vmid": str(traced.vmid(pod))}
    assert {each.parent for each in spans[:-1]} == {root.id}
    names = {each.name for each in spans}
    assert names >= {"Proxmox POST /nodes/{node}/lxc", "Proxmox task vzcreate", "CNI ADD bridge"}
    assert not [each for each in spans if each.failed]


def test_a_containers_trace_has_the_oci_runtime(collector: Collector, traced: CriClient) -> None:
    container = traced.create(traced.run_pod(), traced.container_config("sleep", "1000"))
    trace = secrets.token_hex(16)
    metadata = (("traceparent", f"00-{trace}-{secrets.token_hex(8)}-01"),)
    traced.runtime.StartContainer(pb.StartContainerRequest(container_id=container), metadata=metadata)
    request = pb.ExecSyncRequest(container_id=container, cmd=["true"])
    traced.runtime.ExecSync(request, metadata=metadata)
    names = {each.name for each in received(collector, trace, "ExecSync")}
    assert names >= {"OCI runtime create", "OCI runtime start", "OCI runtime exec", f"{SERVICE}/StartContainer"}
    # The kubelet did not record the others.
    assert {each.trace for each in collector.spans()} == {trace}
