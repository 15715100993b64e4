# SPDX-License-Identifier: Apache-2.0
"""The daemon's own metrics, scraped while pods are created and removed."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from support.cri_client import CriClient, eventually, pod_security, refused, security
from support.daemon import Machine
from support.figures import Scrape
from support.machine_node import EmbeddedNode
from support.nri_plugin import NriPlugin, Refused

from pvecri.cri.proto import cri_pb2 as pb
from pvecri.linux import cgroups, processes

ADDRESS = "127.0.0.1:9537"  # the machine has a network namespace of its own
MIB = 1 << 20
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def scrape() -> Scrape:
    return Scrape(f"http://{ADDRESS}/metrics")


@pytest.fixture
def cri(machine: Machine) -> Iterator[CriClient]:
    """A client of a daemon that shows its metrics and has counted nothing yet."""
    machine.restart(metrics=f'listen = "{ADDRESS}"')
    eventually(machine.ready, "the runtime is ready")
    yield machine.client
    machine.clean()
    machine.restart()


def phases(found: Scrape) -> dict[str, float]:
    return {labels["phase"]: found.value("pods", **labels) for labels in found.labels("pods")}


def states(found: Scrape) -> dict[str, float]:
    return {labels["state"]: found.value("containers", **labels) for labels in found.labels("containers")}


def test_pods_and_containers_are_counted_by_state(cri: CriClient) -> None:
    pod, stopped = cri.run_pod(), cri.run_pod()
    cri.stop_pod(stopped)
    cri.run(pod, "sleep", "1000", name="running")
    cri.create(pod, cri.container_config("true", name="created"))
    cri.finish(pod, "true", name="ended")
    assert phases(scrape()) == {"creating": 0, "ready": 1, "stopped": 1, "removing": 0}
    assert states(scrape()) == {"created": 1, "running": 1, "exited": 1, "unknown": 0}


def test_pods_are_counted_by_user_namespace_and_reason(cri: CriClient) -> None:
    cri.run_pod()
    cri.run_pod()
    cri.run_pod(cri.pod_config(linux=pod_security(privileged=True)))
    found = scrape()
    counts = {
        (labels["kind"], labels["reason"]): found.value("pods_by_user_namespace", **labels)
        for labels in found.labels("pods_by_user_namespace")
    }
    assert counts == {("ct", "default"): 2, ("node", "privileged"): 1}


def test_calls_tasks_and_plugins_of_a_pod_are_counted(machine: Machine, cri: CriClient) -> None:
    pod = cri.run_pod()
    cri.remove_pod(pod)
    machine.wait_for_removals()
    found = scrape()
    for method in ("RunPodSandbox", "RemovePodSandbox"):
        assert found.value("cri_calls_total", method=method, code="OK") == 1
        assert found.value("cri_call_duration_seconds_count", method=method) == 1
        assert found.value("cri_calls_in_flight", method=method) == 0
    for kind in ("vzcreate", "vzdestroy"):
        assert found.value("proxmox_tasks_total", type=kind, code="OK") == 1
        assert found.value("proxmox_task_duration_seconds_count", type=kind) == 1
    create = {"method": "POST", "path": "/nodes/{node}/lxc"}
    assert found.value("proxmox_requests_total", **create, code="200") == 1
    assert found.value("proxmox_request_duration_seconds_count", **create) == 1
    for command in ("ADD", "DEL"):
        assert found.value("cni_calls_total", plugin="bridge", command=command, code="OK") >= 1
        assert found.value("cni_call_duration_seconds_count", plugin="bridge", command=command) >= 1


def test_pods_use_vmids_of_the_range(cri: CriClient) -> None:
    def vmids() -> dict[str, float]:
        found = scrape()
        return {labels["state"]: found.value("vmids", **labels) for labels in found.labels("vmids")}

    cri.run_pod()  # for the first one the guests are listed, which may change both
    before = vmids()
    cri.run_pod()
    assert vmids() == {"free": before["free"] - 1, "used": before["used"] + 1}


def test_steps_of_a_pods_setup_are_timed(cri: CriClient) -> None:
    cri.run_pod()
    found = scrape()
    steps = {
        step: found.value("pod_setup_step_duration_seconds_count", step=step)
        for step in ("ct", "namespaces", "network", "nri", "warm_ct")
    }
    assert steps == {"ct": 1, "namespaces": 1, "network": 1, "nri": 1, "warm_ct": 0}


def test_claimed_warm_ct_is_counted_and_its_step_timed(machine: Machine, cri: CriClient) -> None:
    def warm(name: str) -> float:
        return scrape().value(name, kind="unprivileged")

    # Without the pool at the end: while it keeps a CT warm, the machine is never as it was when it was new.
    with machine.restarted(metrics=f'listen = "{ADDRESS}"', proxmox="warm_pods = {unprivileged = 1}") as warmed:
        warmed.run_pod()  # the first one is the demand
        eventually(lambda: warm("warm_cts") == warm("warm_cts_target") == 1, "a CT waits for a pod")
        warmed.run_pod()
        found = scrape()
    assert found.value("warm_claims_total", kind="unprivileged", outcome="claimed") == 1
    assert found.value("pod_setup_step_duration_seconds_count", step="warm_ct") == 1


def test_calls_to_nri_plugins_are_counted(machine: Machine, cri: CriClient) -> None:
    def refuse(_: object) -> None:
        raise Refused("not this one", 99)

    counted = {"plugin": "50-metered", "method": "RunPodSandbox"}
    with NriPlugin(machine.nri_socket, "metered", RunPodSandbox=refuse):
        with refused(grpc.StatusCode.INTERNAL, "not this one"):
            cri.run_pod()
        found = scrape()
        assert found.value("nri_plugins") == 1
        assert found.value("nri_calls_total", **counted, code="UNKNOWN") == 1
        assert found.value("nri_call_duration_seconds_count", **counted) == 1
    eventually(lambda: scrape().value("nri_plugins") == 0, "the plugin has disconnected")


def test_killed_conmon_is_counted(cri: CriClient) -> None:
    pod = cri.run_pod()
    container = cri.run(pod, "sleep", "1000")
    (monitor,) = [
        pid
        for pid in cgroups.detect().processes(f"/lxc/{cri.vmid(pod)}/conmon")
        if container in processes.command_line(pid)
    ]
    os.kill(monitor, signal.SIGKILL)
    cri.wait_for_exit(container)
    assert scrape().value("container_monitors_lost_total") == 1


def test_no_label_value_identifies_a_pod(machine: Machine, cri: CriClient) -> None:
    pod = cri.run_pod()
    container = cri.run(pod, "true", name="some-name")
    labels = [line.partition("}")[0] for line in scrape().text.splitlines() if line.startswith("pvecri_")]
    node = machine.node.name
    differing = re.compile(rf"{cri.vmid(pod)}|{pod}|{container}|some-name|UPID|/nodes/{node}/")
    assert [each for each in labels if differing.search(each)] == []


def test_a_refused_call_is_counted_by_its_status(cri: CriClient) -> None:
    with refused(grpc.StatusCode.NOT_FOUND, "nothing"):
        cri.start("nothing")
    assert scrape().value("cri_calls_total", method="StartContainer", code="NOT_FOUND") == 1


def test_event_stream_is_a_call_in_flight(cri: CriClient) -> None:
    def listening() -> float:
        return scrape().value("cri_calls_in_flight", method="GetContainerEvents")

    events = cri.runtime.GetContainerEvents(pb.GetEventsRequest())
    events.initial_metadata()
    assert listening() == 1
    events.cancel()
    eventually(lambda: listening() == 0, "the daemon has noticed")


def test_failed_cni_plugin_is_counted(machine: Machine, cri: CriClient) -> None:
    machine.write_network(machine.write_plugin("failing", '[ "$CNI_COMMAND" != ADD ]'))
    with refused(grpc.StatusCode.INTERNAL, "failing"):
        cri.run_pod()
    assert scrape().value("cni_calls_total", plugin="failing", command="ADD", code="INTERNAL") == 1


def test_unmet_condition_is_0(machine: Machine, cri: CriClient) -> None:
    names = ("RuntimeReady", "NetworkReady", "ProxmoxReady", "ImageStoreReady")
    assert [scrape().value("condition", type=name) for name in names] == [1, 1, 1, 1]
    for path in machine.conf_dir.iterdir():
        path.unlink()
    assert [scrape().value("condition", type=name) for name in names] == [1, 0, 1, 1]


def probe(path: str) -> tuple[int, str]:
    """Status and body of a health endpoint."""
    try:
        with urllib.request.urlopen(f"http://{ADDRESS}{path}") as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_health_endpoints_follow_the_conditions(machine: Machine, cri: CriClient) -> None:
    assert [probe("/healthz"), probe("/readyz")] == [(200, "ok"), (200, "ok")]
    for path in machine.conf_dir.iterdir():
        path.unlink()
    status, body = probe("/readyz")
    assert status == 503
    assert "[-]NetworkReady failed: NetworkPluginNotReady\n" in body
    assert probe("/healthz?verbose") == (200, "[+]ping ok\n[+]cri ok\nhealthz check passed\n")
    # What makes the gRPC server NOT_SERVING is RuntimeReady, which has no part of the network.
    with grpc.insecure_channel(f"unix:{machine.socket}") as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check", bytes, bytes)
        assert check(b"") == b"\x08\x01"


def test_removed_pods_ct_is_pending_until_it_is_destroyed(embedded: EmbeddedNode, cri: CriClient) -> None:
    pod = cri.run_pod()
    embedded.fault(task="vzdestroy", text="dataset is busy", times=None)
    cri.remove_pod(pod)
    eventually(lambda: scrape().value("background_failures_total", work="removal") >= 2, "two tries have failed")
    found = scrape()
    assert found.value("ct_removals_pending") == 1
    assert set(phases(found).values()) == {0}
    embedded.clear_faults()
    eventually(lambda: scrape().value("ct_removals_pending") == 0, "it is destroyed")
    assert scrape().value("proxmox_tasks_total", type="vzdestroy", code="INTERNAL") >= 2


def test_failed_cleanup_is_pending_until_it_succeeds(machine: Machine, cri: CriClient) -> None:
    go_on = machine.directory / "del-works"
    machine.write_network(
        machine.write_plugin("failing", f"case $CNI_COMMAND in ADD) cat ;; DEL) [ -e {go_on} ] ;; esac")
    )
    pod = cri.run_pod()
    with refused(grpc.StatusCode.INTERNAL, "failing"):
        cri.remove_pod(pod)
    machine.kill()
    with closing(sqlite3.connect(machine.state_dir / "pods.db")) as database, database:
        changed = "CAST(json_set(CAST(value AS TEXT), '$.phase', 'removing') AS BLOB)"
        database.execute(f"UPDATE sandboxes SET value = {changed}")
    machine.start(metrics=f'listen = "{ADDRESS}"')
    eventually(lambda: scrape().value("cleanup_pending") == 1, "a try to clean up has failed")
    assert phases(scrape())["removing"] == 1
    eventually(lambda: scrape().value("background_failing", work="recovery") == 1, "three tries have failed")
    go_on.touch()
    eventually(lambda: scrape().value("cleanup_pending") == 0, "it is cleaned up")
    found = scrape()
    assert found.labels("background_failing") == []
    assert found.value("cleanup_failures_total") >= 1


def test_oom_killed_container_is_counted(cri: CriClient) -> None:
    linux = security()
    linux.resources.memory_limit_in_bytes = 24 * MIB
    cri.wait_for_exit(cri.run(cri.run_pod(), "tail", "/dev/zero", linux=linux, name="burst"))
    found = scrape()
    assert found.value("container_oom_kills_total") == 1
    (labels,) = found.labels("container_oom_kills_by_name_total")
    assert found.value("container_oom_kills_by_name_total", **labels) == 1
    pod = cri.pods()[0].metadata
    assert labels == {"namespace": pod.namespace, "container": "burst"}


def test_pull_of_a_present_image_is_counted(cri: CriClient) -> None:
    cri.pull(cri.image)
    found = scrape()
    assert found.value("image_pulls_total", code="OK") == 1
    assert found.value("image_fetched_bytes_total") == 0


@pytest.mark.parametrize("example", ["prometheus-rules.yml", "grafana-dashboard.json"])
def test_daemon_exposes_every_metric_of_the_examples(cri: CriClient, example: str) -> None:
    exposed = {}
    for line in scrape().text.splitlines():
        if line.startswith("# TYPE "):
            name, kind = line.split()[2:]
            exposed[name] = kind
    histograms = {f"{name}_bucket" for name, kind in exposed.items() if kind == "histogram"}
    named = set(re.findall(r"\b(?:pvecri|process)_[a-z_]+(?=[{\[ ])", (EXAMPLES / example).read_text()))
    assert len(named) > 20
    assert named - exposed.keys() - histograms == set()


def test_the_version_and_the_process_are_shown(cri: CriClient) -> None:
    found = scrape()
    (labels,) = found.labels("build_info")
    answer = cri.runtime.Version(pb.VersionRequest())
    assert labels == {"version": answer.runtime_version}
    assert re.search(r"^process_resident_memory_bytes [1-9]", found.text, re.MULTILINE)
