# SPDX-License-Identifier: Apache-2.0
"""Conversion of seccomp profiles to the OCI spec."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pvecri.errors import InvalidArgument
from pvecri.model import ProfileKind, SecurityProfile
from pvecri.oci import seccomp

ALLOW, ERRNO = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"
FLAG = "SECCOMP_FILTER_FLAG_LOG"
RUNTIME_DEFAULT = SecurityProfile(kind=ProfileKind.RUNTIME_DEFAULT)


def local(path: str) -> SecurityProfile:
    return SecurityProfile(kind=ProfileKind.LOCALHOST, localhost_ref=path)


def resolve(document: dict[str, Any], capabilities: frozenset[str] = frozenset(), machine: str = "x86_64") -> Any:
    """The OCI `linux.seccomp` that a profile comes to, as its JSON has it."""
    profile = msgspec.convert(document, seccomp.Profile)
    resolved = seccomp.resolve(profile, capabilities=capabilities, machine=machine)
    return msgspec.json.decode(msgspec.json.encode(resolved))


def names(entry: dict[str, Any], capabilities: frozenset[str] = frozenset(), machine: str = "x86_64") -> list[str]:
    """The system calls that are left of a profile with one entry."""
    document = {"defaultAction": ERRNO, "syscalls": [{"names": ["mount"], "action": ALLOW, **entry}]}
    resolved = resolve(document, capabilities=capabilities, machine=machine)
    return [name for each in resolved["syscalls"] for name in each["names"]]


@pytest.mark.parametrize(
    ("entry", "capabilities", "machine", "applies"),
    [
        ({}, set(), "x86_64", True),
        ({"includes": {"caps": ["CAP_SYS_ADMIN"]}}, set(), "x86_64", False),
        ({"includes": {"caps": ["CAP_SYS_ADMIN"]}}, {"CAP_SYS_ADMIN"}, "x86_64", True),
        ({"includes": {"caps": ["CAP_A", "CAP_B"]}}, {"CAP_A"}, "x86_64", False),
        ({"excludes": {"caps": ["CAP_SYS_ADMIN"]}}, set(), "x86_64", True),
        ({"excludes": {"caps": ["CAP_SYS_ADMIN"]}}, {"CAP_SYS_ADMIN"}, "x86_64", False),
        ({"includes": {"arches": ["amd64", "x32"]}}, set(), "x86_64", True),
        ({"includes": {"arches": ["arm64"]}}, set(), "x86_64", False),
        ({"includes": {"arches": ["arm64"]}}, set(), "aarch64", True),
        ({"excludes": {"arches": ["amd64"]}}, set(), "x86_64", False),
        ({"excludes": {"arches": ["s390x"]}}, set(), "x86_64", True),
        ({"includes": None, "excludes": None}, set(), "x86_64", True),
        ({"includes": {"arches": ["riscv64"]}}, set(), "riscv64", True),
    ],
)
def test_includes_and_excludes_are_evaluated(
    entry: dict[str, Any], capabilities: set[str], machine: str, applies: bool
) -> None:
    assert names(entry, frozenset(capabilities), machine) == (["mount"] if applies else [])


def test_syscall_keeps_its_arguments_and_errno() -> None:
    args = [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]
    document = {
        "defaultAction": ERRNO,
        "defaultErrnoRet": 38,
        "syscalls": [
            {"names": ["clone"], "action": ERRNO, "errnoRet": 1, "args": args, "comment": "dropped"},
            {"name": "old", "action": ALLOW, "errnoRet": 1},
        ],
    }
    resolved = resolve(document)
    assert resolved == {
        "defaultAction": ERRNO,
        "defaultErrnoRet": 38,
        "syscalls": [
            {"names": ["clone"], "action": ERRNO, "errnoRet": 1, "args": args},
            {"names": ["old"], "action": ALLOW},
        ],
    }


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ("x86_64", ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]),
        ("aarch64", ["SCMP_ARCH_AARCH64"]),
        ("riscv64", None),
    ],
)
def test_arch_map_adds_the_sub_architectures(machine: str, expected: list[str] | None) -> None:
    arch_map = [
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
        {"architecture": "SCMP_ARCH_AARCH64"},
    ]
    resolved = resolve({"defaultAction": ERRNO, "archMap": arch_map}, machine=machine)
    assert resolved.get("architectures") == expected


def test_oci_format_profile_keeps_its_architectures() -> None:
    document = {"defaultAction": ALLOW, "architectures": ["SCMP_ARCH_X86_64"], "flags": [FLAG], "syscalls": []}
    assert resolve(document) == document


@pytest.mark.parametrize(
    ("profile", "privileged"),
    [
        (None, False),
        (SecurityProfile(kind=ProfileKind.UNCONFINED), False),
        (RUNTIME_DEFAULT, True),
    ],
)
def test_unset_unconfined_and_privileged_have_no_filter(profile: SecurityProfile | None, privileged: bool) -> None:
    answer = seccomp.for_container(
        profile, default=Path("/nowhere"), capabilities=frozenset(), privileged=privileged
    )
    assert answer is None


def test_runtime_default_and_localhost_profiles_are_read_from_files(tmp_path: Path) -> None:
    for name, action in (("default", ERRNO), ("local", ALLOW)):
        (tmp_path / name).write_text(json.dumps({"defaultAction": action}))
    for profile, expected in ((RUNTIME_DEFAULT, ERRNO), (local(str(tmp_path / "local")), ALLOW)):
        filter_ = seccomp.for_container(
            profile, default=tmp_path / "default", capabilities=frozenset(), privileged=False
        )
        assert filter_ is not None
        assert filter_.default_action == expected


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (
            SecurityProfile(kind=ProfileKind.LOCALHOST, localhost_ref="relative"),
            "localhost_ref: 'relative' is not",
        ),
        (SecurityProfile(kind=ProfileKind.LOCALHOST, localhost_ref="/not/there"), "localhost_ref: cannot read"),
        (RUNTIME_DEFAULT, r"runtime\.seccomp_profile: cannot read"),
    ],
)
def test_unreadable_seccomp_profile_is_named(profile: SecurityProfile, message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=message):
        seccomp.for_container(profile, default=tmp_path / "none", capabilities=frozenset(), privileged=False)


def test_malformed_seccomp_profile_is_named(tmp_path: Path) -> None:
    (tmp_path / "profile").write_text("{")
    profile = local(str(tmp_path / "profile"))
    with pytest.raises(InvalidArgument, match=f"cannot read the seccomp profile {tmp_path}/profile"):
        seccomp.for_container(profile, default=tmp_path, capabilities=frozenset(), privileged=False)


ARG = {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "Expected `object`, got `array`"),
        ({}, "missing required field `defaultAction`"),
        ({"defaultAction": "ALLOW"}, r"Invalid enum value 'ALLOW' - at `\$\.defaultAction`"),
        ({"defaultAction": ALLOW, "defaultErrnoRet": -1}, r"Expected `int` >= 0 - at `\$\.defaultErrnoRet`"),
        ({"defaultAction": ALLOW, "defaultErrnoRet": 1 << 70}, "Expected `int` <= 65535"),
        ({"defaultAction": ALLOW, "flags": ["x"]}, r"at `\$\.flags\[0\]`"),
        ({"defaultAction": ALLOW, "architectures": ["x86"]}, r"at `\$\.architectures\[0\]`"),
        ({"defaultAction": ALLOW, "syscalls": {}}, "Expected `array"),
        ({"defaultAction": ALLOW, "syscalls": [{"names": [""], "action": ERRNO}]}, "length >= 1"),
        ({"defaultAction": ALLOW, "syscalls": [{"names": ["a"], "action": "NO"}]}, "Invalid enum value 'NO'"),
        (
            {"defaultAction": ALLOW, "syscalls": [{"name": "a", "action": ERRNO, "args": [{**ARG, "index": 6}]}]},
            "Expected `int` <= 5",
        ),
        (
            {
                "defaultAction": ALLOW,
                "syscalls": [{"name": "a", "action": ERRNO, "args": [{**ARG, "value": 1 << 64}]}],
            },
            "the value of an argument has 64 bits",
        ),
    ],
)
def test_profile_that_is_none_is_refused_with_the_place_in_the_file(
    tmp_path: Path, document: object, message: str
) -> None:
    (tmp_path / "profile").write_text(json.dumps(document))
    with pytest.raises(InvalidArgument, match=rf"^config\..*seccomp\.localhost_ref: .*{message}"):
        loaded(tmp_path / "profile")


def loaded(path: Path) -> Any:
    return seccomp.for_container(local(str(path)), default=path, capabilities=frozenset(), privileged=False)


def test_profile_of_endless_nesting_is_refused(tmp_path: Path) -> None:
    (tmp_path / "profile").write_text('{"defaultAction": "SCMP_ACT_ALLOW", "x": ' + "[" * 100_000)
    with pytest.raises(InvalidArgument, match="maximum recursion depth"):
        loaded(tmp_path / "profile")


def test_profile_must_be_a_regular_file_of_bounded_size(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(seccomp.SIZE_MAX + 1)
    for path in (tmp_path / "fifo", tmp_path / "large", Path("/dev/zero")):
        with pytest.raises(InvalidArgument, match="not a regular file of at most 4194304 bytes"):
            loaded(path)


def test_entry_without_a_name_is_left_out() -> None:
    assert names({"names": []}) == []
