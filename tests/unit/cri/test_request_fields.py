# SPDX-License-Identifier: Apache-2.0
"""Every field of the CRI's configurations reaches its own place in the model, or is ignored for a reason."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
from google.protobuf.message import Message
from support.cri_messages import Path, fields, reach, set_field, some_value

from pvecri.cri import requests
from pvecri.cri.proto import cri_pb2 as pb
from pvecri.errors import InvalidArgument
from pvecri.model import (
    ContainerConfig,
    ContainerMetadata,
    IdMapping,
    NamespaceMode,
    ProfileKind,
    RegistryAuth,
    Resources,
    SecurityProfile,
    UserNamespace,
    Value,
)

WINDOWS = "is for Windows nodes"
OTHER_HANDLER = "an image is the same for every runtime handler"

IGNORED = {
    "pod.windows": WINDOWS,
    "pod.linux.security_context.seccomp_profile_path": "older than `seccomp`; a sandbox runs nothing of the pod's",
    "container.windows": WINDOWS,
    "container.image.annotations": "nothing here reads them",
    "container.image.runtime_handler": OTHER_HANDLER,
    "container.image.image_ref": "the kubelet gives the same in `image`",
    "container.mounts.image.annotations": "nothing here reads them",
    "container.mounts.image.user_specified_image": "only shown for a container's own image",
    "container.mounts.image.runtime_handler": OTHER_HANDLER,
    "container.mounts.image.image_ref": "the runtime finds out, and answers with it",
}

RENAMED = (
    ("linux.resources", "resources"),
    ("linux.overhead", "overhead"),
    ("linux.sysctls", "sysctls"),
    ("linux.cgroup_parent", "cgroup_parent"),
    ("linux.security_context", "security"),
    ("namespace_options", "namespaces"),
    ("userns_options", "user"),
    ("dns_config", "dns"),
    ("memory_limit_in_bytes", "memory_limit"),
    ("memory_swap_limit_in_bytes", "memory_swap_limit"),
    ("supplemental_groups_policy", "groups_policy"),
    ("profile_type", "kind"),
    ("recursive_read_only", "recursive_readonly"),
    ("uidMappings", "uid_mappings"),
    ("gidMappings", "gid_mappings"),
    ("mounts.image.image", "mounts.image"),
    ("image.user_specified_image", "user_specified_image"),
    ("image.image", "image"),
    ("envs.key", "envs"),
    ("envs.value", "envs"),
    ("CDI_devices.name", "cdi_devices"),
    ("add_capabilities", "add"),
    ("drop_capabilities", "drop"),
    ("add_ambient_capabilities", "ambient"),
    ("run_as_user.value", "run_as_user"),
    ("run_as_group.value", "run_as_group"),
    *((f"selinux_options.{part}", "selinux_label") for part in ("user", "role", "type", "level")),
    ("seccomp_profile_path", "seccomp"),
    ("apparmor_profile", "apparmor"),
)
"""What the model calls otherwise than the CRI; all else has one name."""


def pod(message: pb.PodSandboxConfig) -> Value:
    message.metadata.SetInParent()
    return requests.sandbox_config(message)


def container(message: pb.ContainerConfig) -> Value:
    message.metadata.SetInParent()
    return requests.container_config(message)


def cases() -> Iterator[object]:
    messages: tuple[tuple[str, Callable[[], Message], object], ...] = (
        ("pod", pb.PodSandboxConfig, pod),
        ("container", pb.ContainerConfig, container),
        ("resources", pb.LinuxContainerResources, requests.resources),
        ("auth", pb.AuthConfig, requests.registry_auth),
    )
    for name, make, translate in messages:
        for path, _ in fields(make().DESCRIPTOR):
            yield pytest.param(make, translate, path, id=".".join((name, *path)))


def is_ignored(case: str) -> bool:
    return any(case == each or case.startswith(f"{each}.") for each in IGNORED)


def place(path: Path) -> str:
    """Where in the model a field of the CRI belongs."""
    name = f".{'.'.join(path)}."
    for cri, model in RENAMED:
        name = name.replace(f".{cri}.", f".{model}.")
    return name.strip(".")


def flat(value: object, *prefix: str) -> Iterator[tuple[str, object]]:
    """All that a value says, by the names that lead there; the entries of a tuple are not numbered."""
    if isinstance(value, Value):
        for name in value.__struct_fields__:
            yield from flat(getattr(value, name), *prefix, name)
    elif isinstance(value, tuple) and value and isinstance(value[0], Value):
        for each in value:
            yield from flat(each, *prefix)
    else:
        yield ".".join(prefix), value


def changed(before: Value, after: Value) -> set[str]:
    old, new = dict(flat(before)), dict(flat(after))
    if new.keys() != old.keys():  # a profile that was not there at all: one change, whatever it holds
        return {name.rpartition(".")[0] for name in new.keys() - old.keys()}
    return {name for name in new if new[name] != old[name]}


@pytest.mark.parametrize(("make", "translate", "path"), list(cases()))
def test_each_request_field_changes_only_its_model_field(
    make: Callable[[], Message],
    translate: Callable[[Message], Value],
    path: Path,
    request: pytest.FixtureRequest,
) -> None:
    without, message = make(), make()
    reach(without, path)
    field = dict(fields(message.DESCRIPTOR))[path]
    set_field(message, path, some_value(field))
    difference = changed(translate(without), translate(message))
    assert difference == (set() if is_ignored(request.node.callspec.id) else {place(path)})


def test_every_ignored_field_is_one_of_the_cri() -> None:
    roots = {"pod": pb.PodSandboxConfig.DESCRIPTOR, "container": pb.ContainerConfig.DESCRIPTOR}
    known = {".".join((root, *path)) for root, descriptor in roots.items() for path, _ in fields(descriptor)}
    assert [
        each for each in IGNORED if not any(name == each or name.startswith(f"{each}.") for name in known)
    ] == []


@pytest.mark.parametrize("translate", [requests.sandbox_config, requests.container_config])
def test_a_configuration_without_metadata_is_refused(translate: Callable[[Message], Value]) -> None:
    make = pb.PodSandboxConfig if translate is requests.sandbox_config else pb.ContainerConfig
    with pytest.raises(InvalidArgument, match=r"^config\.metadata: is missing$"):
        translate(make())


# -- values ---------------------------------------------------------------------------------------------------


def enum_paths() -> Iterator[object]:
    """Every field of an enum that the model has as one too."""
    for translate, make in ((pod, pb.PodSandboxConfig), (container, pb.ContainerConfig)):
        for path, field in fields(make.DESCRIPTOR):
            if field.enum_type is not None and path[0] != "windows":
                yield pytest.param(translate, make, path, id=f"{translate.__name__}.{'.'.join(path)}")


@pytest.mark.parametrize(("translate", "make", "path"), list(enum_paths()))
def test_unknown_enum_value_is_refused_with_the_field(
    translate: Callable[[Message], Value], make: Callable[[], Message], path: Path
) -> None:
    message = make()
    set_field(message, path, 99)
    with pytest.raises(InvalidArgument, match=r": 99 is not a value that this version knows$") as caught:
        translate(message)
    assert re.sub(r"\[0\]", "", caught.value.field) == f"config.{'.'.join(path)}"


@pytest.mark.parametrize(("translate", "make", "path"), list(enum_paths()))
def test_every_value_of_an_enum_has_one_of_its_own_in_the_model(
    translate: Callable[[Message], Value], make: Callable[[], Message], path: Path
) -> None:
    values = dict(fields(make().DESCRIPTOR))[path].enum_type.values
    seen = set()
    for value in values:
        message = make()
        set_field(message, path, value.number)
        seen.add(dict(flat(translate(message)))[place(path)])
    assert len(seen) == len(values)


def test_stop_signal_has_the_kernels_name() -> None:
    names = {pb.SIGTERM: "SIGTERM", pb.SIGRTMINPLUS3: "SIGRTMIN+3", pb.SIGRTMAXMINUS1: "SIGRTMAX-1"}
    assert {number: requests.signal_name(number) for number in names} == names
    assert requests.signal_name(pb.RUNTIME_DEFAULT) == ""


def test_id_0_differs_from_unset() -> None:
    message = pb.LinuxContainerSecurityContext(run_as_user=pb.Int64Value(value=0))
    config = requests.container_config(
        pb.ContainerConfig(
            metadata=pb.ContainerMetadata(), linux=pb.LinuxContainerConfig(security_context=message)
        )
    )
    assert (config.security.run_as_user, config.security.run_as_group) == (0, None)


def test_error_for_a_non_utf8_variable_names_it() -> None:
    message = pb.ContainerConfig(metadata=pb.ContainerMetadata(), envs=[pb.KeyValue(key="KEY", value=b"\xff")])
    with pytest.raises(InvalidArgument, match=r"^config\.envs\[0\]\.value: is not UTF-8$"):
        requests.container_config(message)


@pytest.mark.parametrize(
    ("name", "profile"),
    [
        ("", None),
        ("runtime/default", SecurityProfile(kind=ProfileKind.RUNTIME_DEFAULT)),
        ("docker/default", SecurityProfile(kind=ProfileKind.RUNTIME_DEFAULT)),
        ("unconfined", SecurityProfile(kind=ProfileKind.UNCONFINED)),
        ("localhost//etc/p.json", SecurityProfile(kind=ProfileKind.LOCALHOST, localhost_ref="/etc/p.json")),
    ],
)
def test_deprecated_profile_fields_are_supported(name: str, profile: SecurityProfile | None) -> None:
    message = pb.ContainerConfig(metadata=pb.ContainerMetadata())
    message.linux.security_context.seccomp_profile_path = name
    message.linux.security_context.apparmor_profile = name
    security = requests.container_config(message).security
    assert (security.seccomp, security.apparmor) == (profile, profile)


@pytest.mark.parametrize("reference", ["mine", "localhost/mine"])
def test_localhost_profile_may_have_the_deprecated_prefix(reference: str) -> None:
    message = pb.ContainerConfig(metadata=pb.ContainerMetadata())
    wanted = pb.SecurityProfile(profile_type=pb.SecurityProfile.Localhost, localhost_ref=reference)
    message.linux.security_context.apparmor.CopyFrom(wanted)
    profile = requests.container_config(message).security.apparmor
    assert profile == SecurityProfile(kind=ProfileKind.LOCALHOST, localhost_ref="mine")


def test_selinux_label_keeps_empty_parts() -> None:
    message = pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata())
    message.linux.security_context.selinux_options.level = "s0"
    assert requests.sandbox_config(message).security.selinux_label == ":::s0"


def test_unset_user_namespace_is_none() -> None:
    message = pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata())
    assert requests.sandbox_config(message).security.namespaces.user is None
    options = message.linux.security_context.namespace_options.userns_options
    options.uids.add(container_id=0, host_id=70_000, length=65_536)
    mapping = IdMapping(container_id=0, host_id=70_000, length=65_536)
    expected = UserNamespace(mode=NamespaceMode.POD, uids=(mapping,))
    assert requests.sandbox_config(message).security.namespaces.user == expected


def test_unset_fields_have_the_models_defaults() -> None:
    assert requests.resources(pb.LinuxContainerResources()) == Resources()
    assert requests.registry_auth(pb.AuthConfig()) == RegistryAuth()
    empty = requests.container_config(pb.ContainerConfig(metadata=pb.ContainerMetadata()))
    assert empty == ContainerConfig(metadata=ContainerMetadata(name=""), image="")
