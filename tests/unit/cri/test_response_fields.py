# SPDX-License-Identifier: Apache-2.0
"""Every field of the CRI's answers about pods, containers and images says something, or is left for a reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from google.protobuf.message import Message
from msgspec.structs import replace
from support.cri_messages import fill, unset
from support.filled import filled

from pvecri.cri import requests, responses
from pvecri.cri.proto import cri_pb2 as pb
from pvecri.model import (
    Container,
    ContainerState,
    FilesystemUsage,
    Image,
    ImageConfig,
    Sandbox,
    SandboxPhase,
)
from pvecri.oci.runtime import ExecResult
from pvecri.pods.health import Condition

NOT_READ = "nothing here reads an image's annotations"
OTHER_HANDLER = "an image is the same for every runtime handler"

SANDBOX = replace(filled(Sandbox), phase=SandboxPhase.STOPPED)
CONTAINER = replace(filled(Container), stop_signal="SIGRTMIN+3")
IMAGE = filled(Image)
NUMBERED = replace(IMAGE, config=replace(IMAGE.config, user="1000:50"))

ANSWERS: dict[str, tuple[Callable[[], Message], dict[str, str]]] = {
    "PodSandbox": (lambda: responses.sandbox(SANDBOX), {}),
    "PodSandboxStatus": (lambda: responses.sandbox_status(SANDBOX), {}),
    "Container": (
        lambda: responses.container(CONTAINER),
        {
            "image.annotations": NOT_READ,
            "image.runtime_handler": OTHER_HANDLER,
            "image.image_ref": "stands beside it",
        },
    ),
    "ContainerStatus": (
        lambda: responses.container_status(CONTAINER),
        {
            "image.annotations": NOT_READ,
            "image.runtime_handler": OTHER_HANDLER,
            "image.image_ref": "stands beside it",
            "mounts.image.annotations": NOT_READ,
            "mounts.image.runtime_handler": OTHER_HANDLER,
            "mounts.image.user_specified_image": "is the container's own image's",
            "resources.windows": "is for Windows nodes",
        },
    ),
    "Image of a named user": (
        lambda: responses.image(IMAGE),
        {
            "uid": "the image has a user's name instead",
            "spec.annotations": NOT_READ,
            "spec.runtime_handler": OTHER_HANDLER,
            "spec.user_specified_image": "is a container's",
            "spec.image_ref": "is a container's",
        },
    ),
    "Image of a numbered user": (
        lambda: responses.image(NUMBERED),
        {
            "username": "the image has a user's number instead",
            "spec.annotations": NOT_READ,
            "spec.runtime_handler": OTHER_HANDLER,
            "spec.user_specified_image": "is a container's",
            "spec.image_ref": "is a container's",
        },
    ),
    "FilesystemUsage": (lambda: responses.filesystem(filled(FilesystemUsage)), {}),
    "RuntimeCondition": (lambda: responses.condition(filled(Condition)), {}),
    "ExecSyncResponse": (lambda: responses.exec_result(ExecResult(3, b"out", b"err")), {}),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_all_response_fields_are_set_except_documented_ones(name: str) -> None:
    make, left = ANSWERS[name]
    assert {".".join(path) for path in unset(make())} == set(left)


def test_pod_response_repeats_the_request() -> None:
    asked = pb.PodSandboxConfig()
    fill(asked)
    shown = responses.sandbox_status(replace(SANDBOX, config=requests.sandbox_config(asked)))
    assert shown.metadata == asked.metadata
    assert (shown.labels, shown.annotations) == (asked.labels, asked.annotations)
    assert shown.linux.namespaces.options == asked.linux.security_context.namespace_options


def test_container_response_repeats_the_request() -> None:
    asked = pb.ContainerConfig()
    fill(asked)
    for image in (asked.image, asked.mounts[0].image):
        image.CopyFrom(pb.ImageSpec(image=image.image))
    shown = responses.container_status(replace(CONTAINER, config=requests.container_config(asked)))
    assert shown.metadata == asked.metadata
    assert (shown.labels, shown.annotations) == (asked.labels, asked.annotations)
    assert responses.container(replace(CONTAINER, config=requests.container_config(asked))).image == asked.image
    assert list(shown.mounts) == list(asked.mounts)
    assert shown.resources.linux == asked.linux.resources


def test_image_of_a_container_has_the_name_that_people_know() -> None:
    assert responses.container_status(CONTAINER).image.image == CONTAINER.image_name
    older = replace(CONTAINER, image_name="")
    assert responses.container_status(older).image.image == CONTAINER.config.image


def test_image_volume_has_the_resolved_image_id() -> None:
    shown = responses.container_status(CONTAINER)
    assert [each.image.image_ref for each in shown.mounts] == [each.image_ref for each in CONTAINER.config.mounts]


def test_a_container_is_told_by_its_own_fields() -> None:
    shown = responses.container_status(CONTAINER)
    assert (shown.id, shown.image_ref, shown.image_id) == (
        CONTAINER.id,
        CONTAINER.image_reference,
        CONTAINER.image_id,
    )
    assert (shown.created_at, shown.started_at, shown.finished_at) == (
        CONTAINER.created_at,
        CONTAINER.started_at,
        CONTAINER.finished_at,
    )
    assert (shown.exit_code, shown.reason, shown.message) == (
        CONTAINER.exit_code,
        CONTAINER.reason,
        CONTAINER.message,
    )
    listed = responses.container(CONTAINER)
    assert (listed.id, listed.pod_sandbox_id, listed.state) == (CONTAINER.id, CONTAINER.sandbox_id, shown.state)


def test_first_address_is_primary_and_others_additional() -> None:
    shown = responses.sandbox_status(replace(SANDBOX, ips=("10.0.0.2", "fd00::2", "fd00::3"))).network
    assert (shown.ip, [each.ip for each in shown.additional_ips]) == ("10.0.0.2", ["fd00::2", "fd00::3"])
    assert responses.sandbox_status(replace(SANDBOX, ips=())).network.ip == ""


@pytest.mark.parametrize("state", ContainerState)
def test_a_containers_state_has_the_cris_name(state: ContainerState) -> None:
    number = responses.container_state(replace(CONTAINER, state=state))
    assert pb.ContainerState.Name(number) == f"CONTAINER_{state.name}"


@pytest.mark.parametrize("phase", SandboxPhase)
def test_only_the_ready_phase_is_sandbox_ready(phase: SandboxPhase) -> None:
    number = responses.sandbox_state(replace(SANDBOX, phase=phase))
    assert number == (pb.SANDBOX_READY if phase is SandboxPhase.READY else pb.SANDBOX_NOTREADY)


def test_an_image_is_told_by_its_own_fields() -> None:
    shown = responses.image(NUMBERED)
    assert (shown.id, tuple(shown.repo_tags), tuple(shown.repo_digests)) == (IMAGE.id, IMAGE.tags, IMAGE.digests)
    assert (shown.size, shown.uid.value, shown.spec.image) == (IMAGE.size, 1000, IMAGE.id)


@pytest.mark.parametrize("user", ["9" * 20, "9" * 5000, "\u0669", "-1", "4294967295"])
def test_image_user_beyond_all_ids_is_shown_as_a_name(user: str) -> None:
    shown = responses.image(replace(IMAGE, config=ImageConfig(user=f"{user}:0")))
    assert (shown.username, shown.HasField("uid")) == (user, False)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("SIGTERM", "SIGTERM"),
        ("TERM", "SIGTERM"),
        ("sigquit", "SIGQUIT"),
        ("SIGRTMIN+3", "SIGRTMINPLUS3"),
        ("RTMAX-1", "SIGRTMAXMINUS1"),
        ("9", "RUNTIME_DEFAULT"),
        ("SIGNOTHING", "RUNTIME_DEFAULT"),
        ("", "RUNTIME_DEFAULT"),
    ],
)
def test_stop_signal_has_the_cris_name_if_defined(name: str, shown: str) -> None:
    assert pb.Signal.Name(responses.container_status(replace(CONTAINER, stop_signal=name)).stop_signal) == shown


@pytest.mark.parametrize("number", [each.number for each in pb.Signal.DESCRIPTOR.values])
def test_all_cri_signals_round_trip(number: int) -> None:
    name = requests.signal_name(number)
    assert pb.Signal.Value(responses.signal_of(name)) == number
