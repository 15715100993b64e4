# SPDX-License-Identifier: Apache-2.0
"""Seccomp profiles: the format of Docker and containers-common, converted to the OCI spec's `linux.seccomp`.

The default profile is containers-common's, whose entries may be conditional on capabilities and architectures. The
OCI format has no conditions.
"""

from __future__ import annotations

import os
import platform
import stat
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from pvecri.errors import InvalidArgument
from pvecri.model import ProfileKind, SecurityProfile
from pvecri.oci.runtime_spec import Part, Seccomp, Syscall, SyscallArg

_ARCHITECTURES = {"x86_64": ("amd64", "SCMP_ARCH_X86_64"), "aarch64": ("arm64", "SCMP_ARCH_AARCH64")}


SIZE_MAX = 4 << 20
"""Bytes of a profile file; containers-common's has 20 KB."""

# Not SCMP_ACT_NOTIFY: it needs a listener, which the CRI cannot name.
_Action = Literal[
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_TRAP",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_LOG",
]
_Op = Literal[
    "SCMP_CMP_NE",
    "SCMP_CMP_LT",
    "SCMP_CMP_LE",
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_MASKED_EQ",
]
_Architecture = Annotated[str, msgspec.Meta(pattern="^SCMP_ARCH_[A-Z0-9_]+$")]
_Flag = Annotated[str, msgspec.Meta(pattern="^SECCOMP_FILTER_FLAG_[A-Z_]+$")]
_Name = Annotated[str, msgspec.Meta(min_length=1)]
_Errno = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
"""A filter returns 16 bits of data (SECCOMP_RET_DATA)."""


class _Arg(Part, frozen=True):
    index: Annotated[int, msgspec.Meta(ge=0, le=5)]
    value: int
    op: _Op
    value_two: int | None = None

    def __post_init__(self) -> None:
        if not all(0 <= value < 1 << 64 for value in (self.value, self.value_two or 0)):
            raise ValueError("the value of an argument has 64 bits")


class _Condition(Part, frozen=True):
    """`includes` or `excludes` of an entry."""

    arches: tuple[str, ...] | None = None
    caps: tuple[str, ...] | None = None


class _Entry(Part, frozen=True):
    action: _Action
    name: str = ""
    """Docker's older form of `names`."""
    names: tuple[_Name, ...] | None = None
    errno_ret: _Errno | None = None
    args: tuple[_Arg, ...] | None = None
    includes: _Condition | None = None
    excludes: _Condition | None = None


class _ArchMap(Part, frozen=True):
    architecture: str = ""
    sub_architectures: tuple[_Architecture, ...] | None = None


class Profile(Part, frozen=True):
    """A profile file; one in the OCI format is one without conditions and with `architectures`."""

    default_action: _Action
    default_errno_ret: _Errno | None = None
    architectures: tuple[_Architecture, ...] | None = None
    arch_map: tuple[_ArchMap, ...] | None = None
    flags: tuple[_Flag, ...] | None = None
    syscalls: tuple[_Entry, ...] | None = None


def for_container(
    profile: SecurityProfile | None, *, default: Path, capabilities: frozenset[str], privileged: bool
) -> Seccomp | None:
    """The OCI `linux.seccomp` object, or None for no filter.

    None for an unset profile, UNCONFINED and a privileged container (CRI SecurityProfile). InvalidArgument if the
    file cannot be read or is not a profile; it has the place in the file, such as `$.syscalls[3].action`.
    """
    if privileged or profile is None or profile.kind is ProfileKind.UNCONFINED:
        return None
    field = "config.linux.security_context.seccomp.localhost_ref"
    path = default
    if profile.kind is ProfileKind.LOCALHOST:
        path = Path(profile.localhost_ref)
        if not path.is_absolute():
            raise InvalidArgument(field, f"{profile.localhost_ref!r} is not an absolute path")
    try:
        document = msgspec.json.decode(_read(path), type=Profile)
    except (OSError, ValueError, RecursionError) as error:
        if profile.kind is ProfileKind.RUNTIME_DEFAULT:
            field = "runtime.seccomp_profile"
        problem = error.strerror if isinstance(error, OSError) else error
        raise InvalidArgument(field, f"cannot read the seccomp profile {path}: {problem}") from error
    return resolve(document, capabilities=capabilities, machine=platform.machine())


def _read(path: Path) -> bytes:
    """A regular file of at most SIZE_MAX bytes; ValueError for others, such as a FIFO, which would block."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > SIZE_MAX:
            raise ValueError(f"not a regular file of at most {SIZE_MAX} bytes")
        return file.read(SIZE_MAX)


def resolve(profile: Profile, *, capabilities: frozenset[str], machine: str) -> Seccomp:
    """Evaluate the condition of each entry for a container's capabilities and this node's architecture."""
    name, native = _ARCHITECTURES.get(machine, (machine, ""))
    mapped = next((each for each in profile.arch_map or () if each.architecture == native), None)
    return Seccomp(
        default_action=profile.default_action,
        default_errno_ret=profile.default_errno_ret,
        architectures=profile.architectures or ((native, *(mapped.sub_architectures or ())) if mapped else ()),
        flags=profile.flags,
        syscalls=tuple(
            _syscall(each)
            for each in profile.syscalls or ()
            if (each.names or each.name) and _applies(each, capabilities, name)
        ),
    )


def _applies(entry: _Entry, capabilities: frozenset[str], architecture: str) -> bool:
    includes, excludes = entry.includes or _Condition(), entry.excludes or _Condition()
    return (
        (not includes.arches or architecture in includes.arches)
        and capabilities.issuperset(includes.caps or ())
        and architecture not in (excludes.arches or ())
        and capabilities.isdisjoint(excludes.caps or ())
    )


def _syscall(entry: _Entry) -> Syscall:
    # crun refuses an errnoRet with any other action, and profiles in use have them.
    has_errno = entry.action in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")
    return Syscall(
        names=entry.names or (entry.name,),
        action=entry.action,
        errno_ret=entry.errno_ret if has_errno else None,
        args=tuple(SyscallArg(arg.index, arg.value, arg.op, arg.value_two) for arg in entry.args or ()),
    )
