# SPDX-License-Identifier: Apache-2.0
"""A filter lets through what fits all that it says; one that says nothing lets through everything."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from support.filled import filled

from pvecri.cri import filters
from pvecri.cri.proto import cri_pb2 as pb
from pvecri.errors import InvalidArgument
from pvecri.model import Container, ContainerId, ContainerState, Sandbox, SandboxId, SandboxPhase

LABELS = {"app": "web", "tier": "front"}
SANDBOX = filled(Sandbox)
POD = replace(
    SANDBOX,
    id=SandboxId("ab" * 32),
    phase=SandboxPhase.READY,
    config=replace(SANDBOX.config, labels=LABELS),
)
FILLED = filled(Container)
CONTAINER = replace(
    FILLED,
    id=ContainerId("cd" * 32),
    sandbox_id=POD.id,
    state=ContainerState.RUNNING,
    config=replace(FILLED.config, labels=LABELS),
)

COMMON: list[tuple[dict[str, Any], bool]] = [
    ({}, True),
    ({"label_selector": {"app": "web"}}, True),
    ({"label_selector": LABELS}, True),
    ({"label_selector": {"app": "db"}}, False),
    ({"label_selector": {"app": "web", "zone": ""}}, False),
]
OF_PODS = [*COMMON, ({"id": "ab"}, True), ({"id": POD.id}, True), ({"id": "b"}, False)]
OF_CONTAINERS = [
    *COMMON,
    ({"id": "cd"}, True),
    ({"id": "ab"}, False),
    ({"pod_sandbox_id": "abab"}, True),
    ({"pod_sandbox_id": "cd"}, False),
    ({"id": "cd", "pod_sandbox_id": "ab", "label_selector": {"app": "web"}}, True),
    ({"id": "cd", "pod_sandbox_id": "ab", "label_selector": {"app": "db"}}, False),
]


def ready(state: pb.PodSandboxState) -> dict[str, Any]:
    return {"state": pb.PodSandboxStateValue(state=state)}


def running(state: pb.ContainerState) -> dict[str, Any]:
    return {"state": pb.ContainerStateValue(state=state)}


@pytest.mark.parametrize(
    ("wanted", "fits"), [*OF_PODS, (ready(pb.SANDBOX_READY), True), (ready(pb.SANDBOX_NOTREADY), False)]
)
def test_pod_must_match_all_fields_of_the_filter(wanted: dict[str, Any], fits: bool) -> None:
    assert filters.sandboxes(pb.PodSandboxFilter(**wanted))(POD) is fits


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [*OF_CONTAINERS, (running(pb.CONTAINER_RUNNING), True), (running(pb.CONTAINER_CREATED), False)],
)
def test_container_must_match_all_fields_of_the_filter(wanted: dict[str, Any], fits: bool) -> None:
    assert filters.containers(pb.ContainerFilter(**wanted))(CONTAINER) is fits


@pytest.mark.parametrize(("wanted", "fits"), OF_PODS)
def test_pod_stats_must_match_all_fields_of_the_filter(wanted: dict[str, Any], fits: bool) -> None:
    assert filters.pod_stats(pb.PodSandboxStatsFilter(**wanted))(POD) is fits


@pytest.mark.parametrize(("wanted", "fits"), OF_CONTAINERS)
def test_container_stats_must_match_all_fields_of_the_filter(wanted: dict[str, Any], fits: bool) -> None:
    assert filters.container_stats(pb.ContainerStatsFilter(**wanted))(CONTAINER) is fits


def test_zero_enum_state_differs_from_unset() -> None:
    stopped = replace(POD, phase=SandboxPhase.STOPPED)
    assert filters.sandboxes(pb.PodSandboxFilter())(stopped)
    assert not filters.sandboxes(pb.PodSandboxFilter(**ready(pb.SANDBOX_READY)))(stopped)


def test_error_for_an_empty_required_field_names_it() -> None:
    assert filters.given("container_id", "c1") == "c1"
    with pytest.raises(InvalidArgument, match=r"^container_id: must not be empty$"):
        filters.given("container_id", "")
