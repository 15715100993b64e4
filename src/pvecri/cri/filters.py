# SPDX-License-Identifier: Apache-2.0
"""The CRI's list filters, as predicates. An object must match all set fields of a filter."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pvecri.cri import responses
from pvecri.cri.proto import cri_pb2 as pb
from pvecri.errors import InvalidArgument
from pvecri.model import Container, Sandbox


def given(field: str, value: str) -> str:
    """The value of a required field; InvalidArgument if it is empty."""
    if not value:
        raise InvalidArgument(field, "must not be empty")
    return value


def sandboxes(wanted: pb.PodSandboxFilter) -> Callable[[Sandbox], bool]:
    """By id prefix, state and labels."""
    prefix, selector = wanted.id, dict(wanted.label_selector)
    # SANDBOX_READY is 0, as an unset enum: hence the message around it.
    state = wanted.state.state if wanted.HasField("state") else None
    return lambda sandbox: (
        sandbox.id.startswith(prefix)
        and (state is None or responses.sandbox_state(sandbox) == state)
        and matches(sandbox.config.labels, selector)
    )


def containers(wanted: pb.ContainerFilter) -> Callable[[Container], bool]:
    """By prefixes of the id and of the pod's id, by state and labels."""
    # CONTAINER_CREATED is 0, as an unset enum: hence the message around it.
    state = wanted.state.state if wanted.HasField("state") else None
    fits = _containers(wanted.id, wanted.pod_sandbox_id, dict(wanted.label_selector))
    return lambda container: fits(container) and (state is None or responses.container_state(container) == state)


def container_stats(wanted: pb.ContainerStatsFilter) -> Callable[[Container], bool]:
    """By prefixes of the id and of the pod's id, and by labels."""
    return _containers(wanted.id, wanted.pod_sandbox_id, dict(wanted.label_selector))


def _containers(prefix: str, pod: str, selector: Mapping[str, str]) -> Callable[[Container], bool]:
    return lambda container: (
        container.id.startswith(prefix)
        and container.sandbox_id.startswith(pod)
        and matches(container.config.labels, selector)
    )


def pod_stats(wanted: pb.PodSandboxStatsFilter) -> Callable[[Sandbox], bool]:
    """By id prefix and labels."""
    prefix, selector = wanted.id, dict(wanted.label_selector)
    return lambda sandbox: sandbox.id.startswith(prefix) and matches(sandbox.config.labels, selector)


def matches(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Whether labels contain every entry of a selector."""
    return all(labels.get(key) == value for key, value in selector.items())
