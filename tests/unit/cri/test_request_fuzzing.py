# SPDX-License-Identifier: Apache-2.0
"""No message, however odd, gets anything else out of us than an InvalidArgument."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import msgspec
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from support.cri_messages import AnyField, fields, is_map, set_field
from support.plans import plan

from pvecri.cri import requests
from pvecri.cri.proto import cri_pb2 as pb
from pvecri.errors import InvalidArgument
from pvecri.model import ContainerConfig, SandboxConfig
from pvecri.oci import spec
from pvecri.pods.validation import check_container, check_sandbox

WORDS = (
    *(
        "",
        "/",
        "..",
        "/a/../b",
        "a/b",
        "web",
        "NODE",
        "0",
        "-1",
        "rwm",
        "10.0.0.1",
        "fd00::1",
        "net.ipv4.ip_forward",
    ),
    *("kernel.sem", "localhost/x", "CAP_SYS_ADMIN", "ALL", "\0", "a\0b", "a\nb", "\N{SNOWMAN}", "x" * 300),
)
INTEGERS = {
    FieldDescriptor.TYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.TYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.TYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.TYPE_UINT64: (0, (1 << 64) - 1),
}
TEXT = st.sampled_from(WORDS) | st.text(max_size=20)


def values(field: AnyField) -> st.SearchStrategy[Any]:
    """Everything that the wire lets through for a field."""
    if is_map(field):
        return st.dictionaries(TEXT, TEXT, max_size=3)
    if field.enum_type is not None:
        return st.sampled_from([value.number for value in field.enum_type.values]) | st.just(99)
    if field.type == FieldDescriptor.TYPE_BOOL:
        return st.booleans()
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=8) | TEXT.map(str.encode)
    if field.type == FieldDescriptor.TYPE_STRING:
        return TEXT
    least, most = INTEGERS[field.type]
    return st.integers(least, most) | st.sampled_from((0, 1, most))


def messages(plain: Message) -> st.SearchStrategy[Message]:
    """A message that is good, with some of its fields changed to anything."""
    known = list(fields(plain.DESCRIPTOR))
    change = st.sampled_from(known).flatmap(lambda each: st.tuples(st.just(each[0]), values(each[1])))

    def changed(changes: list[tuple[tuple[str, ...], Any]]) -> Message:
        message = type(plain)()
        message.CopyFrom(plain)
        for path, value in changes:
            set_field(message, path, value)
        return message

    return st.lists(change, max_size=6).map(changed)


PODS = messages(
    pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name="web", namespace="shop", uid="1"), log_directory="/var/log/pods/web"
    )
)
CONTAINERS = messages(
    pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name="main"), image=pb.ImageSpec(image="busybox"), log_path="0.log"
    )
)


def understood_pod(message: Any) -> SandboxConfig | None:
    with suppress(InvalidArgument):
        config = requests.sandbox_config(message)
        check_sandbox(config, "")
        return config
    return None


def understood_container(message: Any, pod: SandboxConfig) -> ContainerConfig | None:
    with suppress(InvalidArgument):
        config = requests.container_config(message)
        check_container(config, pod)
        return config
    return None


@settings(max_examples=100)
@given(PODS)
def test_a_pod_is_accepted_or_refused_by_a_field_and_never_fails_otherwise(message: Message) -> None:
    config = understood_pod(message)
    if config is not None:
        assert msgspec.json.decode(msgspec.json.encode(config), type=SandboxConfig) == config


@settings(max_examples=100)
@given(PODS, CONTAINERS)
def test_a_container_is_accepted_or_refused_by_a_field_and_never_fails_otherwise(
    pod: Message, container: Message
) -> None:
    sandbox = understood_pod(pod)
    config = understood_container(container, sandbox) if sandbox else None
    if config is not None:
        assert msgspec.json.decode(msgspec.json.encode(config), type=ContainerConfig) == config
        assert not any("\0" in text for text in for_the_kernel(config))
        with suppress(InvalidArgument):
            assert json.loads(spec.build(plan(config=config, sandbox=sandbox)))


def for_the_kernel(config: ContainerConfig) -> Iterator[str]:
    """What becomes an argument, a variable or a path of the kernel's."""
    yield from (*config.command, *config.args, config.working_dir, config.log_path)
    yield from (part for variable in config.envs for part in variable)
    yield from (path for mount in config.mounts for path in (mount.container_path, mount.host_path))
    yield from (path for device in config.devices for path in (device.container_path, device.host_path))
