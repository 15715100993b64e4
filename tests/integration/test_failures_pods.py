# SPDX-License-Identifier: Apache-2.0
"""Pods that cannot be created because of the request or the network: status, message, nothing left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from support.cri_client import CriClient, eventually, refused
from support.daemon import Machine
from support.machine_node import EmbeddedNode

from pvecri.cri.proto import cri_pb2 as pb


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"metadata": pb.PodSandboxMetadata(name="", namespace="tests", uid="1")}, "config.metadata.name"),
        ({"metadata": pb.PodSandboxMetadata(name="../x", namespace="tests", uid="1")}, "config.metadata.name"),
        ({"metadata": pb.PodSandboxMetadata(name="a", namespace="", uid="1")}, "config.metadata.namespace"),
        ({"metadata": pb.PodSandboxMetadata(name="a", namespace="tests", uid="")}, "config.metadata.uid"),
        ({"hostname": "web 0"}, "config.hostname"),
        ({"log_directory": "logs"}, "config.log_directory"),
        ({"port_mappings": [pb.PortMapping(container_port=0)]}, r"config.port_mappings\[0\].container_port"),
        ({"dns_config": pb.DNSConfig(servers=["dns"])}, r"config.dns_config.servers\[0\]"),
    ],
)
def test_error_names_the_invalid_field(
    machine: Machine, cri: CriClient, fields: dict[str, Any], field: str
) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT, f"^{field}: "):
        cri.run_pod(cri.pod_config(**fields))
    machine.assert_nothing_left()


def test_a_request_without_metadata_is_refused(machine: Machine, cri: CriClient) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "^config.metadata: is missing"):
        cri.run_pod(pb.PodSandboxConfig())
    machine.assert_nothing_left()


def test_an_unknown_runtime_handler_is_refused(machine: Machine, cri: CriClient) -> None:
    request = pb.RunPodSandboxRequest(config=cri.pod_config(), runtime_handler="gvisor")
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "^runtime_handler: 'gvisor' is unknown"):
        cri.runtime.RunPodSandbox(request)
    machine.assert_nothing_left()


def test_error_of_a_network_plugin_is_returned(machine: Machine, cri: CriClient) -> None:
    answer = '{"cniVersion": "1.0.0", "code": 11, "msg": "no addresses left"}'
    machine.write_network(
        machine.write_plugin("failing", f"[ $CNI_COMMAND = DEL ] || {{ echo '{answer}'; exit 1; }}")
    )
    with refused(grpc.StatusCode.INTERNAL, "CNI plugin failing .*: ADD: .*no addresses left"):
        cri.run_pod()
    machine.assert_nothing_left()


def test_missing_network_plugin_is_named(machine: Machine, cri: CriClient) -> None:
    machine.write_network({"type": "nowhere"})
    with refused(grpc.StatusCode.FAILED_PRECONDITION, r"needs the CNI plugins nowhere.*network\.bin_dirs"):
        cri.run_pod()
    machine.assert_nothing_left()


def test_pod_needs_a_network_configuration(machine: Machine, cri: CriClient) -> None:
    (machine.conf_dir / "10-pvt.conflist").unlink()
    with refused(grpc.StatusCode.FAILED_PRECONDITION, f"{machine.conf_dir}"):
        cri.run_pod()
    machine.assert_nothing_left()


def stuck_pod(machine: Machine, cri: CriClient) -> tuple[str, Path]:
    """A pod, and the file with which its network's DEL fails as long as it exists."""
    stuck = machine.directory / "stuck"
    script = f'[ $CNI_COMMAND = DEL ] && [ -e {stuck} ] && {{ echo \'{{"code": 99, "msg": "stuck"}}\'; exit 1; }}'
    machine.write_network(machine.write_plugin("sticky", f"{script}\n[ $CNI_COMMAND = ADD ] && cat || true"))
    pod = cri.run_pod()
    stuck.touch()
    return pod, stuck


def test_pod_stays_until_its_network_can_be_detached(machine: Machine, cri: CriClient) -> None:
    pod, stuck = stuck_pod(machine, cri)
    with refused(grpc.StatusCode.INTERNAL, "CNI plugin sticky .*: DEL: .*stuck"):
        cri.remove_pod(pod)
    assert [each.id for each in cri.pods()] == [pod]
    stuck.unlink()
    cri.remove_pod(pod)
    machine.assert_nothing_left()


def test_ct_ends_although_its_network_cannot_be_detached(machine: Machine, cri: CriClient) -> None:
    pod, stuck = stuck_pod(machine, cri)
    with refused(grpc.StatusCode.INTERNAL, "CNI plugin sticky .*: DEL: .*stuck"):
        cri.stop_pod(pod)
    vmid = cri.vmid(pod)
    eventually(lambda: machine.node.ct(vmid, "status/current")["status"] == "stopped", "the CT is stopped")
    stuck.unlink()
    cri.stop_pod(pod)
    cri.remove_pod(pod)
    machine.assert_nothing_left()


def test_cancelled_stop_is_completed_by_the_next(machine: Machine, cri: CriClient) -> None:
    slow, waits = machine.directory / "slow", machine.directory / "waits"
    script = f"[ $CNI_COMMAND = DEL ] && {{ touch {waits}; while [ -e {slow} ]; do sleep 0.1; done; }}"
    machine.write_network(machine.write_plugin("slow", f"{script}\n[ $CNI_COMMAND = ADD ] && cat || true"))
    pod = cri.run_pod()
    slow.touch()
    call = cri.runtime.StopPodSandbox.future(pb.StopPodSandboxRequest(pod_sandbox_id=pod))
    eventually(waits.exists, "CNI DEL runs")
    call.cancel()
    slow.unlink()
    cri.stop_pod(pod)
    assert cri.pod_status(pod).state == pb.SANDBOX_NOTREADY
    cri.remove_pod(pod)
    machine.assert_nothing_left()


def test_a_host_port_that_is_mapped_twice_is_refused(machine: Machine, cri: CriClient) -> None:
    mapping = pb.PortMapping(container_port=80, host_port=18_081)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, r"port_mappings\[1\].host_port: .*already"):
        cri.run_pod(cri.pod_config(port_mappings=[mapping, mapping]))
    machine.assert_nothing_left()


def test_name_of_a_failed_pod_can_be_reused(machine: Machine, embedded: EmbeddedNode, cri: CriClient) -> None:
    config = cri.pod_config()
    embedded.fault(task="vzcreate", text="no space")
    with refused(grpc.StatusCode.INTERNAL, "no space"):
        cri.run_pod(config)
    machine.wait_until_nothing_left()
    cri.run_pod(config)


def test_failed_pod_does_not_wait_for_the_destroy_of_its_ct(
    machine: Machine, embedded: EmbeddedNode, cri: CriClient
) -> None:
    config = cri.pod_config()
    answer = '{"cniVersion": "1.0.0", "code": 11, "msg": "no addresses left"}'
    machine.write_network(
        machine.write_plugin("failing", f"[ $CNI_COMMAND = DEL ] || {{ echo '{answer}'; exit 1; }}")
    )
    embedded.fault(task="vzdestroy", hold=True)
    with refused(grpc.StatusCode.INTERNAL, "no addresses left"):
        cri.run_pod(config)
    (vmid,) = cri.removals()
    assert cri.pods() == []
    machine.write_network()
    assert cri.vmid(cri.run_pod(config)) != vmid
    embedded.clear_faults()
    eventually(lambda: vmid not in machine.node.cts(), "the CT is destroyed")
