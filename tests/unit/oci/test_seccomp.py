# SPDX-License-Identifier: Apache-2.0
"""Conversion of seccomp profiles to the OCI spec."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pvecri.errors import InvalidArgument
from pvecri.model import ProfileKind, SecurityProfile
from pvecri.oci import seccomp

ALLOW, ERRNO = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"
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
    document = {"defaultAction": ALLOW, "architectures": ["SCMP_ARCH_X86_64"], "flags": ["x"], "syscalls": []}
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
    for name in ("default", "local"):
        (tmp_path / name).write_text(json.dumps({"defaultAction": name}))
    for profile, expected in ((RUNTIME_DEFAULT, "default"), (local(str(tmp_path / "local")), "local")):
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
