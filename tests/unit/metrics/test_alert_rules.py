# SPDX-License-Identifier: Apache-2.0
"""The example's alert rules, evaluated by Prometheus' promtool over series that the cases give."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import promtool

ROOT = Path(__file__).resolve().parents[3]
RULES = ROOT / "examples/prometheus-rules.yml"
RUNBOOK = ROOT / "docs/operations/alerts.md"


def rules() -> dict[str, dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


@dataclass(frozen=True)
class Case:
    """One alert that fires at minute `minute`, with these labels and summary, and one that does not.

    `firing` and `silent` are series, one sample a minute, in promtool's notation, without the target's labels.
    """

    alert: str
    firing: dict[str, str]
    silent: dict[str, str]
    summary: str
    labels: dict[str, str] = field(default_factory=dict)
    minute: int = 40

    def unit(self, series: dict[str, str], *, fires: bool) -> dict[str, Any]:
        rule = rules()[self.alert]
        alert = {
            "exp_labels": {"severity": rule["labels"]["severity"], "instance": "pve1:9537", **self.labels},
            "exp_annotations": {**rule["annotations"], "summary": f"pve1:9537: {self.summary}"},
        }
        return {
            "interval": "1m",
            "input_series": [{"series": of_target(name), "values": values} for name, values in series.items()],
            "alert_rule_test": [
                {"eval_time": f"{self.minute}m", "alertname": self.alert, "exp_alerts": [alert] if fires else []}
            ],
        }


def of_target(name: str) -> str:
    """The series with the labels that Prometheus adds."""
    metric, _, labels = name.removesuffix("}").partition("{")
    own = f"{labels}," if labels else ""
    return f'{metric}{{{own}instance="pve1:9537",job="pvecri"}}'


JOB = {"job": "pvecri"}


def buckets(name: str, labels: str, below: float, above: float) -> dict[str, str]:
    """A histogram whose observations are all between two bounds; ten a minute."""
    with_bound = (f'{name}_bucket{{{labels}{"," * bool(labels)}le="{bound}"}}' for bound in (below, above, "+Inf"))
    return dict(zip(with_bound, ("0x60", "0+10x60", "0+10x60"), strict=True))


CASES = [
    Case("PvecriDown", {"up": "1x10 0x40"}, {"up": "1x60"}, "pvecri does not answer", JOB),
    Case(
        "PvecriRestarts",
        {"process_start_time_seconds": "1 1 2 2 3 3 4 4 5x40"},
        {"process_start_time_seconds": "1 1 2 2 3x40"},
        "pvecri was restarted 4 times in an hour",
        JOB,
    ),
    Case(
        "PvecriNotReady",
        {'pvecri_condition{type="ProxmoxReady"}': "1x30 0x20"},
        {
            'pvecri_condition{type="ProxmoxReady"}': "1x36 0x20",  # for less than five minutes
            'pvecri_condition{type="BackgroundWorkHealthy"}': "0x60",
        },
        "ProxmoxReady is not met",
        {"type": "ProxmoxReady", **JOB},
    ),
    Case(
        "PvecriBackgroundWorkFails",
        {'pvecri_background_failing{work="recovery"}': "_x20 1x40"},
        {'pvecri_background_failing{work="recovery"}': "1x20 _x40"},
        "recovery keeps failing",
        {"work": "recovery", **JOB},
    ),
    Case(
        "PvecriCleanupFails",
        {"pvecri_cleanup_pending": "0x10 2x50"},
        {"pvecri_cleanup_pending": "2x30 0 2x40"},
        "leftovers of removed pods cannot be cleaned up",
        JOB,
    ),
    Case(
        "PvecriMemoryHigh",
        {"process_resident_memory_bytes": "536870912x60"},
        {"process_resident_memory_bytes": "90e6x60"},
        "pvecri uses 512MiB of memory",
        JOB,
    ),
    Case(
        "PvecriFilesExhausted",
        {"process_open_fds": "900x60", "process_max_fds": "1000x60"},
        {"process_open_fds": "700x60", "process_max_fds": "1000x60"},
        "pvecri has 90% of its files open",
        JOB,
    ),
    Case(
        "PvecriFaults",  # the first one is enough, though the series begins with it
        {'pvecri_cri_faults_total{method="Exec"}': "_x30 1x30"},
        {'pvecri_cri_faults_total{method="Exec"}': "_x10 1x50"},
        "Exec fails with unexpected errors",
        {"method": "Exec"},
    ),
    Case(
        "PvecriCallsFail",
        {
            'pvecri_cri_calls_total{method="RunPodSandbox",code="INTERNAL"}': "0+1x60",
            'pvecri_cri_calls_total{method="RunPodSandbox",code="OK"}': "0+100x60",
        },
        {
            'pvecri_cri_calls_total{method="ContainerStatus",code="NOT_FOUND"}': "0+9x60",
            'pvecri_cri_calls_total{method="ExecSync",code="CANCELLED"}': "0+9x60",
            'pvecri_cri_calls_total{method="PullImage",code="UNAVAILABLE"}': "0+9x60",
            'pvecri_cri_calls_total{method="RunPodSandbox",code="INTERNAL"}': "0x30 4x30",
        },
        "RunPodSandbox failed 15 times in 15 minutes",
        {"method": "RunPodSandbox"},
    ),
    Case(
        "PvecriCallsHang",
        {'pvecri_cri_calls_in_flight{method="StopContainer"}': "0x10 1x50"},
        {
            'pvecri_cri_calls_in_flight{method="StopContainer"}': "1x30 0 1x30",
            'pvecri_cri_calls_in_flight{method="GetContainerEvents"}': "1x60",
            'pvecri_cri_calls_in_flight{method="ExecSync"}': "1x60",
        },
        "calls of StopContainer do not end",
        {"method": "StopContainer", **JOB},
    ),
    Case(
        "PvecriPodStartsSlow",
        buckets("pvecri_cri_call_duration_seconds", 'method="RunPodSandbox"', 30, 60),
        buckets("pvecri_cri_call_duration_seconds", 'method="RunPodSandbox"', 10, 30)
        | buckets("pvecri_cri_call_duration_seconds", 'method="GetContainerEvents"', 60, 120),
        "RunPodSandbox takes 57s",
    ),
    Case(
        "PvecriOciCommandsFail",
        {'pvecri_oci_commands_total{command="create",code="INTERNAL"}': "0+1x60"},
        {'pvecri_oci_commands_total{command="state",code="NOT_FOUND"}': "0+9x60"},
        "pvecri-runtime create fails",
        {"command": "create"},
    ),
    Case(
        "PvecriEventListenersDropped",
        {"pvecri_event_listeners_dropped_total": "0+1x60"},
        {"pvecri_event_listeners_dropped_total": "0x10 2x50"},
        "the kubelet does not keep up with container events",
        JOB,
    ),
    Case(
        "PvecriStreamingSessionsExhausted",
        {'pvecri_streaming_refusals_total{code="503"}': "_x35 1x30"},
        {
            'pvecri_streaming_refusals_total{code="404"}': "0+9x60",
            'pvecri_streaming_refusals_total{code="503"}': "1x60",
        },
        "exec, attach and port-forward are refused",
        {"code": "503", **JOB},
    ),
    Case(
        "PvecriProxmoxErrors",
        {
            'pvecri_proxmox_requests_total{code="200"}': "0+75x60",
            'pvecri_proxmox_requests_total{code="500"}': "0+15x60",
            'pvecri_proxmox_requests_total{code="UNAVAILABLE"}': "0+10x60",
        },
        {
            'pvecri_proxmox_requests_total{code="200"}': "0+95x60",
            'pvecri_proxmox_requests_total{code="500"}': "0+5x60",
        },
        "25% of the requests to Proxmox fail",
    ),
    Case(
        "PvecriProxmoxSlow",
        buckets("pvecri_proxmox_request_duration_seconds", 'method="GET",path="/version"', 5, 10),
        buckets("pvecri_proxmox_request_duration_seconds", 'method="GET",path="/version"', 1, 2),
        "requests to Proxmox take 9.5s",
    ),
    Case(
        "PvecriProxmoxTasksFail",
        {'pvecri_proxmox_tasks_total{type="vzcreate",code="INTERNAL"}': "0+1x60"},
        {
            'pvecri_proxmox_tasks_total{type="vzcreate",code="OK"}': "0+9x60",
            'pvecri_proxmox_tasks_total{type="vzcreate",code="CANCELLED"}': "0+9x60",
            'pvecri_proxmox_tasks_total{type="vzcreate",code="INTERNAL"}': "0x30 2x60",
        },
        "tasks vzcreate fail",
        {"type": "vzcreate"},
    ),
    Case(
        "PvecriProxmoxTasksSlow",
        buckets("pvecri_proxmox_task_duration_seconds", 'type="vzdestroy"', 30, 60),
        buckets("pvecri_proxmox_task_duration_seconds", 'type="vzdestroy"', 10, 30),
        "tasks vzdestroy take 57s",
        {"type": "vzdestroy"},
    ),
    Case(
        "PvecriVmidsScarce",
        {'pvecri_vmids{state="free"}': "5x60", 'pvecri_vmids{state="used"}': "95x60"},
        {'pvecri_vmids{state="free"}': "0x60", 'pvecri_vmids{state="used"}': "100x60"},  # the next one's
        "5% of the VMIDs for pods are left",
        JOB,
    ),
    Case(
        "PvecriVmidsExhausted",
        {'pvecri_vmids{state="free"}': "0x60", 'pvecri_vmids{state="used"}': "100x60"},
        {'pvecri_vmids{state="free"}': "1x60", 'pvecri_vmids{state="used"}': "0x60"},
        "no VMID is left for pods",
        {"state": "free", **JOB},
    ),
    Case(
        "PvecriWarmPoolEmpty",
        {'pvecri_warm_cts_target{kind="unprivileged"}': "3x60", 'pvecri_warm_cts{kind="unprivileged"}': "0x60"},
        {
            'pvecri_warm_cts_target{kind="unprivileged"}': "3x60",
            'pvecri_warm_cts{kind="unprivileged"}': "0x30 1 0x30",
            'pvecri_warm_cts_target{kind="privileged"}': "0x60",
            'pvecri_warm_cts{kind="privileged"}': "0x60",
        },
        "no unprivileged CT waits for a pod",
        {"kind": "unprivileged", **JOB},
    ),
    Case(
        "PvecriForeignCts",
        {'pvecri_foreign_cts{reason="copy"}': "2x60", 'pvecri_foreign_cts{reason="unknown_pod"}': "0x60"},
        {'pvecri_foreign_cts{reason="copy"}': "2x30 0x30"},
        "2 CTs look like pods' and are none (copy)",
        {"reason": "copy", **JOB},
    ),
    Case(
        "PvecriCtsChanged",
        {'pvecri_ct_changes_total{kind="options"}': "0+1x60"},
        {'pvecri_ct_changes_total{kind="options"}': "0x10 2x50"},
        "pods' CTs are changed in Proxmox again and again (options)",
        {"kind": "options", **JOB},
    ),
    Case(
        "PvecriContainersOutOfMemory",
        {
            'pvecri_container_oom_kills_by_name_total{namespace="shop",container="web"}': "1 1 2 2 3 3 4 4 5x60",
            'pvecri_container_oom_kills_by_name_total{namespace="shop",container="db"}': "1x60",
        },
        {'pvecri_container_oom_kills_by_name_total{namespace="shop",container="web"}': "1x10 2x60"},
        "container web of namespace shop runs out of memory",
        {"namespace": "shop", "container": "web", **JOB},
    ),
    Case(
        "PvecriMonitorsLost",
        {"pvecri_container_monitors_lost_total": "0x30 14x30"},
        {"pvecri_container_monitors_lost_total": "0x10 14x50"},
        "conmon of 14 containers was killed",
        JOB,
    ),
    Case(
        "PvecriPullsFail",
        {'pvecri_image_pulls_total{code="UNAVAILABLE"}': "0+1x60"},
        {
            'pvecri_image_pulls_total{code="OK"}': "0+9x60",
            'pvecri_image_pulls_total{code="NOT_FOUND"}': "0+9x60",
        },
        "images cannot be pulled",
    ),
    Case(
        "PvecriCniFails",
        {'pvecri_cni_calls_total{plugin="bridge",command="ADD",code="INTERNAL"}': "0+1x60"},
        {
            'pvecri_cni_calls_total{plugin="bridge",command="ADD",code="OK"}': "0+9x60",
            'pvecri_cni_calls_total{plugin="bridge",command="DEL",code="CANCELLED"}': "0+9x60",
        },
        "ADD of CNI plugin bridge fails",
        {"plugin": "bridge", "command": "ADD"},
    ),
    Case(
        "PvecriNriPluginDropped",
        {'pvecri_nri_calls_total{plugin="10-cpus",method="RunPodSandbox",code="DEADLINE_EXCEEDED"}': "_x30 1x30"},
        {
            'pvecri_nri_calls_total{plugin="10-cpus",method="RunPodSandbox",code="DEADLINE_EXCEEDED"}': "1x60",
            'pvecri_nri_calls_total{plugin="10-cpus",method="RunPodSandbox",code="UNKNOWN"}': "0+9x60",
        },
        "NRI plugin 10-cpus was dropped",
        {"plugin": "10-cpus"},
    ),
    Case(
        "PvecriNriPluginSlow",
        buckets("pvecri_nri_call_duration_seconds", 'plugin="10-cpus",method="CreateContainer"', 1, 2),
        buckets("pvecri_nri_call_duration_seconds", 'plugin="10-cpus",method="CreateContainer"', 0.01, 0.05),
        "NRI plugin 10-cpus answers in 1.9s",
        {"plugin": "10-cpus"},
    ),
]


@promtool.needed
def test_prometheus_accepts_the_rules() -> None:
    said = promtool.run("check", "rules", RULES)
    assert f"SUCCESS: {len(rules())} rules found" in said


@promtool.needed
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.alert)
def test_alert_fires_for_its_cause_alone(tmp_path: Path, case: Case) -> None:
    tests = [case.unit(case.firing, fires=True), case.unit(case.silent, fires=False)]
    promtool.run_on({"rule_files": [str(RULES)], "tests": tests}, tmp_path, "test", "rules")


def test_every_alert_has_a_case() -> None:
    assert [case.alert for case in CASES] == list(rules())


@pytest.mark.parametrize("alert", list(rules()))
def test_alert_has_a_severity_and_a_runbook(alert: str) -> None:
    rule = rules()[alert]
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert rule["annotations"]["runbook"] == f"docs/operations/alerts.md#{alert.lower()}"


def test_runbook_describes_the_alerts_in_their_order() -> None:
    assert re.findall(r"^### (\w+)$", RUNBOOK.read_text(), re.MULTILINE) == list(rules())
