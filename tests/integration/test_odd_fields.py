# SPDX-License-Identifier: Apache-2.0
"""Each field of each request, set to what no client should send: the answer is never a Python exception."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from support.cri_client import CriClient
from support.cri_messages import AnyField, fields, is_map, set_field

from pvecri.cri.proto import cri_pb2 as pb

TEXTS = (
    "a\0b",
    "../../x",
    "/",
    "\x1b[2J\n",
    "%s{}",
    "-1",
    "9" * 5000,
    "\N{ARABIC-INDIC DIGIT ONE}:\u202e@",
    "x" * 70_000,
)
NUMBERS = {
    FieldDescriptor.TYPE_INT32: (-1, -(1 << 31), (1 << 31) - 1),
    FieldDescriptor.TYPE_UINT32: ((1 << 32) - 1,),
    FieldDescriptor.TYPE_INT64: (-1, -(1 << 63), (1 << 63) - 1),
    FieldDescriptor.TYPE_UINT64: ((1 << 64) - 1,),
}
CALLS = [
    pytest.param(service, method, id=method.name)
    for service in ("RuntimeService", "ImageService")
    for method in pb.DESCRIPTOR.services_by_name[service].methods
    if not method.server_streaming
]


def odd_values(field: AnyField) -> Iterator[Any]:
    if is_map(field):
        yield from ({text: text} for text in TEXTS)
    elif field.enum_type is not None:
        yield 99
    elif field.type == FieldDescriptor.TYPE_STRING:
        yield from TEXTS
    elif field.type == FieldDescriptor.TYPE_BYTES:
        yield b"\xff\0"
    else:
        yield from NUMBERS.get(field.type, ())


def check(call: Any, plain: Message) -> None:
    """Send the message with one field after the other set to each odd value."""
    for path, field in fields(plain.DESCRIPTOR):
        for value in odd_values(field):
            request = type(plain)()
            request.CopyFrom(plain)
            set_field(request, path, value)
            try:
                call(request, timeout=60)
            except grpc.RpcError as error:
                answer: Any = error
                refusal = f"{'.'.join(path)} = {value!r:.50}: {answer.code().name}: {answer.details()}"
                assert answer.code() not in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN), refusal
                assert not re.search(r"\w+(Error|Exception): ", answer.details()), refusal


@pytest.mark.parametrize(("service", "method"), CALLS)
def test_no_field_of_a_request_makes_a_fault(cri: CriClient, service: str, method: Any) -> None:
    call = getattr(cri.runtime if service == "RuntimeService" else cri.images, method.name)
    check(call, getattr(pb, method.input_type.name)())
    assert cri.pods() == []


def test_no_field_of_a_container_makes_a_fault(cri: CriClient, pod: str) -> None:
    check(
        cri.runtime.CreateContainer,
        pb.CreateContainerRequest(pod_sandbox_id=pod, config=cri.container_config("true")),
    )


@pytest.mark.parametrize(
    "plain",
    [
        pb.ExecSyncRequest(cmd=["true"]),
        pb.ExecRequest(cmd=["true"], stdout=True),
        pb.UpdateContainerResourcesRequest(),
        pb.CheckpointContainerRequest(),
        pb.ContainerStatusRequest(),
        pb.ContainerStatsRequest(),
    ],
    ids=lambda plain: type(plain).__name__,
)
def test_no_field_of_a_call_to_a_container_makes_a_fault(cri: CriClient, container: str, plain: Message) -> None:
    wanted = type(plain)()
    wanted.CopyFrom(plain)
    set_field(wanted, ("container_id",), container)
    check(getattr(cri.runtime, type(plain).__name__.removesuffix("Request")), wanted)
    assert cri.status(container).state == pb.CONTAINER_RUNNING
