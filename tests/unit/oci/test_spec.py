# SPDX-License-Identifier: Apache-2.0
"""The OCI spec as a whole, and its `process`."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from support.plans import FEATURES, V1, able, configured, plan, secured

from pvecri.errors import InvalidArgument
from pvecri.linux.cgroups import DeviceRule
from pvecri.model import Capabilities, ContainerUser, ImageConfig, ProfileKind, Resources, SecurityProfile
from pvecri.oci import runtime_spec, spec


def built(**changes: Any) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(spec.build(plan(**changes)))
    return document


def test_spec_has_every_section() -> None:
    document = built()
    assert set(document) == {"ociVersion", "root", "process", "mounts", "annotations", "linux"}
    assert document["root"] == {"path": "/rootfs", "readonly": False}


def test_working_directory_of_a_spec_that_a_front_wrote() -> None:
    """Go's encoder leaves out what is false, 0 or empty: `terminal`, `readonly` and more."""
    document = b'{"ociVersion": "1.1.0", "root": {"path": "r"}, "process": {"user": {"uid": 0}, "cwd": "/srv"}}'
    assert runtime_spec.working_directory(document) == "/srv"


def test_readonly_rootfs_is_set() -> None:
    assert json.loads(spec.build(secured(readonly_rootfs=True)))["root"]["readonly"] is True


@pytest.mark.parametrize(
    ("entrypoint", "cmd", "command", "args", "expected"),
    [
        (("/e",), ("c",), (), (), ["/e", "c"]),
        (("/e",), ("c",), (), ("a",), ["/e", "a"]),
        (("/e",), ("c",), ("/k",), (), ["/k"]),
        (("/e",), ("c",), ("/k",), ("a",), ["/k", "a"]),
        ((), ("c",), (), (), ["c"]),
        ((), (), (), ("a",), ["a"]),
        (("/e",), (), (), (), ["/e"]),
        (("",), ("c",), (), (), ["c"]),
        (("",), ("c",), (), ("a",), ["a"]),
        (("",), ("c",), ("/k",), (), ["/k"]),
        (("", "/e"), (), (), (), ["", "/e"]),
    ],
)
def test_command_and_args_override_entrypoint_and_cmd(
    entrypoint: tuple[str, ...],
    cmd: tuple[str, ...],
    command: tuple[str, ...],
    args: tuple[str, ...],
    expected: list[str],
) -> None:
    image = ImageConfig(entrypoint=entrypoint, cmd=cmd)
    wanted = plan(config=configured(command=command, args=args).config, image=image)
    assert list(spec.arguments(wanted)) == expected


@pytest.mark.parametrize("entrypoint", [(), ("",)])
def test_missing_command_is_an_invalid_argument(entrypoint: tuple[str, ...]) -> None:
    wanted = plan(config=configured(command=()).config, image=ImageConfig(entrypoint=entrypoint))
    with pytest.raises(InvalidArgument, match=r"^config\.command: none is given and the image registry\.example"):
        spec.arguments(wanted)


@pytest.mark.parametrize(
    ("image", "request_", "tty", "expected"),
    [
        ((), (), False, {"PATH": spec.DEFAULT_PATH.partition("=")[2], "HOSTNAME": "web-0"}),
        (("PATH=/bin",), (), False, {"PATH": "/bin", "HOSTNAME": "web-0"}),
        (("A=1", "A=2"), (), False, {"A": "2"}),
        (("A=1",), (("A", "2"),), False, {"A": "2"}),
        ((), (("A", ""),), False, {"A": ""}),
        ((), (("A", "b=c"),), False, {"A": "b=c"}),
        ((), (("HOSTNAME", "mine"),), False, {"HOSTNAME": "mine"}),
        ((), (), True, {"TERM": "xterm"}),
        (("TERM=vt100",), (), True, {"TERM": "vt100"}),
        (("A=",), (), False, {"A": ""}),
        (("A==b",), (), False, {"A": "=b"}),
    ],
)
def test_environment_of_the_request_overrides_the_image(
    image: tuple[str, ...], request_: tuple[tuple[str, str], ...], tty: bool, expected: dict[str, str]
) -> None:
    wanted = plan(config=configured(envs=request_, tty=tty).config, image=ImageConfig(env=image))
    entries = spec.environment(wanted)
    variables = dict(entry.split("=", 1) for entry in entries)
    assert expected.items() <= variables.items()
    assert len(entries) == len(variables)


@pytest.mark.parametrize("entry", ["BARE", "=value", "=", ""])
def test_entry_of_the_images_environment_without_name_or_equals_sign_is_left_out(entry: str) -> None:
    assert spec.environment(plan(image=ImageConfig(env=(entry,)))) == spec.environment(plan())


@pytest.mark.parametrize(
    ("image", "request_", "expected"),
    [
        ("", "", "/"),
        ("/srv", "", "/srv"),
        ("/srv", "/tmp", "/tmp"),
        ("", "/tmp", "/tmp"),
        ("srv/app", "", "/srv/app"),
        ("./srv", "", "/./srv"),
    ],
)
def test_working_directory_of_the_request_overrides_the_image(image: str, request_: str, expected: str) -> None:
    wanted = plan(config=configured(working_dir=request_).config, image=ImageConfig(working_dir=image))
    assert spec.process(wanted).cwd == expected


def test_resolved_user_is_set() -> None:
    described = spec.process(plan(user=ContainerUser(uid=1000, gid=50, groups=(50, 90)))).user
    assert msgspec.to_builtins(described) == {"uid": 1000, "gid": 50, "additionalGids": (50, 90), "umask": 0o022}


def test_inheritable_set_equals_the_ambient_set() -> None:
    wanted = secured(capabilities=Capabilities(ambient=("NET_BIND_SERVICE", "SYS_ADMIN")))
    described = spec.process(wanted).capabilities
    assert described.effective == described.bounding == described.permitted == tuple(sorted(wanted.capabilities))
    # SYS_ADMIN is not among the container's own, so it cannot be ambient either.
    assert described.ambient == described.inheritable == ("CAP_NET_BIND_SERVICE",)


@pytest.mark.parametrize(("wanted", "lowest", "expected"), [(-998, -1000, -998), (-998, 0, 0), (1000, 0, 1000)])
def test_oom_score_adj_is_clamped_to_the_lowest_settable(wanted: int, lowest: int, expected: int) -> None:
    config = configured(resources=Resources(oom_score_adj=wanted)).config
    described = spec.process(plan(config=config, features=able(lowest_oom_score_adj=lowest)))
    assert described.oom_score_adj == expected


def test_terminal_and_no_new_privileges_are_set() -> None:
    assert spec.process(configured(tty=True)).terminal is True
    assert spec.process(secured(no_new_privs=True)).no_new_privileges is True


@pytest.mark.parametrize(
    ("profile", "privileged", "loaded", "expected"),
    [
        (None, False, True, True),
        (ProfileKind.RUNTIME_DEFAULT, False, True, True),
        (ProfileKind.UNCONFINED, False, True, False),
        (None, True, True, False),
        (None, False, False, False),
    ],
)
def test_default_apparmor_profile_applies_unless_unconfined_or_privileged(
    profile: ProfileKind | None, privileged: bool, loaded: bool, expected: bool
) -> None:
    wanted = SecurityProfile(kind=profile) if profile else None
    config = secured(apparmor=wanted, privileged=privileged).config
    features = able(apparmor=loaded, apparmor_default=loaded)
    assert bool(spec.process(plan(config=config, features=features)).apparmor_profile) is expected


def test_localhost_apparmor_profile_is_refused_without_apparmor() -> None:
    profile = SecurityProfile(kind=ProfileKind.LOCALHOST, localhost_ref="mine")
    with pytest.raises(InvalidArgument, match=r"apparmor\.localhost_ref: .* does not have AppArmor"):
        spec.process(secured(apparmor=profile))


def test_request_cannot_override_the_runtimes_annotations() -> None:
    forged = {"io.kubernetes.cri.sandbox-name": "forged", "mine": "kept"}
    described = spec.annotations_of(configured(annotations=forged))
    assert described["io.kubernetes.cri.sandbox-name"] == "web-0"
    assert described["io.kubernetes.cri.sandbox-namespace"] == "shop"
    assert described["io.kubernetes.cri.container-name"] == "web"
    assert described["mine"] == "kept"


def test_with_limits_replaces_only_the_limits() -> None:
    before = spec.build(configured(resources=Resources(memory_limit=1 << 20, cpu_shares=512)))
    after = json.loads(spec.with_limits(before, Resources(memory_limit=2 << 20), FEATURES))
    assert after["linux"]["resources"]["memory"]["limit"] == 2 << 20
    assert after["linux"]["resources"]["devices"] == json.loads(before)["linux"]["resources"]["devices"]
    assert after["process"] == json.loads(before)["process"]


def test_privileged_spec_allows_every_device() -> None:
    document = spec.build(secured(privileged=True))
    assert spec.allowed_devices(document) == [DeviceRule("c", None, None), DeviceRule("b", None, None)]
    assert spec.allowed_devices(spec.build(plan(features=able(cgroups=V1)))) == []
