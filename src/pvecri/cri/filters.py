# SPDX-License-Identifier: Apache-2.0
"""The CRI's filters: which pods and containers a request wants. All fields of a filter must fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pvecri.cri import responses
from pvecri.cri.proto import cri_pb2 as pb
from pvecri.errors import InvalidArgument
from pvecri.model import Container, Sandbox


def given(field: str, value: str) -> str:
    """A field that a request must have; InvalidArgument."""
    if not value:
        raise InvalidArgument(field, "must not be empty")
    return value


def sandboxes(wanted: pb.PodSandboxFilter) -> Callable[[Sandbox], bool]:
    """By a beginning of the id, by state and labels."""
    return lambda sandbox: (
        sandbox.id.startswith(wanted.id)
        and (not wanted.HasField("state") or responses.sandbox_state(sandbox) == wanted.state.state)
        and matches(sandbox.config.labels, wanted.label_selector)
    )


def containers(wanted: pb.ContainerFilter) -> Callable[[Container], bool]:
    """By a beginning of the id or of the pod's, by state and labels."""
    return lambda container: (
        container.id.startswith(wanted.id)
        and container.sandbox_id.startswith(wanted.pod_sandbox_id)
        and (not wanted.HasField("state") or responses.container_state(container) == wanted.state.state)
        and matches(container.config.labels, wanted.label_selector)
    )


def container_stats(wanted: pb.ContainerStatsFilter) -> Callable[[Container], bool]:
    """By a beginning of the id or of the pod's, and by labels."""
    return lambda container: (
        container.id.startswith(wanted.id)
        and container.sandbox_id.startswith(wanted.pod_sandbox_id)
        and matches(container.config.labels, wanted.label_selector)
    )


def pod_stats(wanted: pb.PodSandboxStatsFilter) -> Callable[[Sandbox], bool]:
    """By a beginning of the id, and by labels."""
    return lambda sandbox: (
        sandbox.id.startswith(wanted.id) and matches(sandbox.config.labels, wanted.label_selector)
    )


def matches(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Whether labels have every entry of a selector."""
    return all(labels.get(key) == value for key, value in selector.items())
