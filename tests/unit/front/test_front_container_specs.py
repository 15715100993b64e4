# SPDX-License-Identifier: Apache-2.0
"""What of a front's limits and device rules a container below a CT gets, and what its pod's CT follows."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvecri.model import Resources, Sandbox, SandboxConfig, SandboxId, SandboxMetadata, SandboxPhase
from pvecri.pods.front.container import _limits
from pvecri.pods.front.spec import below_ct
from pvecri.pods.registry import PodEntry

ALLOW_ALL = {"allow": True, "access": "rwm"}


@pytest.mark.parametrize(
    "rule",
    [
        ALLOW_ALL,
        {"allow": True, "type": "a", "access": "rwm"},
        {"allow": True, "type": ""},
        {"allow": True, "major": None, "minor": None},
    ],
)
def test_rule_that_allows_every_device_is_split_by_kind(rule: dict[str, object]) -> None:
    assert below_ct({"devices": [rule]})["devices"] == [
        {"allow": True, "type": "c", "access": "rwm"},
        {"allow": True, "type": "b", "access": "rwm"},
    ]


@pytest.mark.parametrize(
    "rule",
    [
        {"allow": False, "access": "rwm"},
        {"allow": False, "type": "a"},
        {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rw"},
        {"allow": True, "type": "b", "access": "m"},
        {"allow": True, "major": 10},
    ],
)
def test_other_device_rules_stay(rule: dict[str, object]) -> None:
    assert below_ct({"devices": [rule]}) == {"devices": [rule]}


def test_order_of_device_rules_stays() -> None:
    deny = {"allow": False}
    rules = below_ct({"devices": [deny, ALLOW_ALL, deny]})["devices"]
    assert [rule["allow"] for rule in rules] == [False, True, True, False]


@pytest.mark.parametrize(("limit", "given"), [(20, 21), (1, 2), (0, 0), (-1, -1)])
def test_monitor_is_one_process_more(limit: int, given: int) -> None:
    assert below_ct({"pids": {"limit": limit}})["pids"] == {"limit": given}


def test_other_limits_stay_and_the_fronts_are_not_changed() -> None:
    resources = {"memory": {"limit": 1}, "pids": {"limit": 5}, "devices": [ALLOW_ALL], "unified": {"a": "b"}}
    before = str(resources)
    changed = below_ct(resources)
    assert (changed["memory"], changed["unified"]) == ({"limit": 1}, {"a": "b"})
    assert str(resources) == before


@pytest.mark.parametrize(
    ("update", "limits"),
    [
        ({}, (100_000, 50_000, 512, 64)),
        ({"memory": {"limit": 128}}, (100_000, 50_000, 512, 128)),
        ({"cpu": {"quota": 20_000}}, (100_000, 20_000, 512, 64)),
        ({"cpu": {"quota": 20_000, "period": 50_000, "shares": 2}, "memory": None}, (50_000, 20_000, 2, 64)),
        ({"memory": {"limit": None, "swap": 5}, "cpu": None, "pids": {"limit": 3}}, (100_000, 50_000, 512, 64)),
    ],
)
def test_pod_of_one_container_has_its_limits_after_an_update(
    update: dict[str, object], limits: tuple[int, int, int, int]
) -> None:
    config = SandboxConfig(
        metadata=SandboxMetadata(name="web", namespace="", uid="web"),
        resources=Resources(cpu_period=100_000, cpu_quota=50_000, cpu_shares=512, memory_limit=64),
    )
    sandbox = Sandbox(id=SandboxId("5a" * 32), config=config, created_at=1, phase=SandboxPhase.READY)
    found = _limits(PodEntry(sandbox, Path("/")), update)
    assert (found.cpu_period, found.cpu_quota, found.cpu_shares, found.memory_limit) == limits
