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
    beginning, selector = wanted.id, dict(wanted.label_selector)
    state = wanted.state.state if wanted.HasField("state") else None
    return lambda sandbox: (
        sandbox.id.startswith(beginning)
        and (state is None or responses.sandbox_state(sandbox) == state)
        and matches(sandbox.config.labels, selector)
    )


def containers(wanted: pb.ContainerFilter) -> Callable[[Container], bool]:
    """By a beginning of the id or of the pod's, by state and labels."""
    state = wanted.state.state if wanted.HasField("state") else None
    fits = _containers(wanted.id, wanted.pod_sandbox_id, dict(wanted.label_selector))
    return lambda container: fits(container) and (state is None or responses.container_state(container) == state)


def container_stats(wanted: pb.ContainerStatsFilter) -> Callable[[Container], bool]:
    """By a beginning of the id or of the pod's, and by labels."""
    return _containers(wanted.id, wanted.pod_sandbox_id, dict(wanted.label_selector))


def _containers(beginning: str, pod: str, selector: Mapping[str, str]) -> Callable[[Container], bool]:
    return lambda container: (
        container.id.startswith(beginning)
        and container.sandbox_id.startswith(pod)
        and matches(container.config.labels, selector)
    )


def pod_stats(wanted: pb.PodSandboxStatsFilter) -> Callable[[Sandbox], bool]:
    """By a beginning of the id, and by labels."""
    beginning, selector = wanted.id, dict(wanted.label_selector)
    return lambda sandbox: sandbox.id.startswith(beginning) and matches(sandbox.config.labels, selector)


def matches(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Whether labels have every entry of a selector."""
    return all(labels.get(key) == value for key, value in selector.items())
