# SPDX-License-Identifier: Apache-2.0
"""Seccomp profiles: the format of Docker and containers-common, converted to the OCI spec's `linux.seccomp`.

The default profile is containers-common's, whose entries may be conditional on capabilities and architectures. The
OCI format has no conditions.
"""

from __future__ import annotations

import platform
from pathlib import Path

import msgspec

from pvecri.errors import InvalidArgument
from pvecri.model import ProfileKind, SecurityProfile
from pvecri.oci.runtime_spec import Part, Seccomp, Syscall, SyscallArg

_ARCHITECTURES = {"x86_64": ("amd64", "SCMP_ARCH_X86_64"), "aarch64": ("arm64", "SCMP_ARCH_AARCH64")}


class _Condition(Part, frozen=True):
    """`includes` or `excludes` of an entry."""

    arches: tuple[str, ...] | None = None
    caps: tuple[str, ...] | None = None


class _Entry(Part, frozen=True):
    action: str
    name: str = ""
    """Docker's older form of `names`."""
    names: tuple[str, ...] | None = None
    errno_ret: int | None = None
    args: tuple[SyscallArg, ...] | None = None
    includes: _Condition | None = None
    excludes: _Condition | None = None


class _ArchMap(Part, frozen=True):
    architecture: str = ""
    sub_architectures: tuple[str, ...] | None = None


class Profile(Part, frozen=True):
    """A profile file; one in the OCI format is one without conditions and with `architectures`."""

    default_action: str
    default_errno_ret: int | None = None
    architectures: tuple[str, ...] | None = None
    arch_map: tuple[_ArchMap, ...] | None = None
    flags: tuple[str, ...] | None = None
    syscalls: tuple[_Entry, ...] | None = None


def for_container(
    profile: SecurityProfile | None, *, default: Path, capabilities: frozenset[str], privileged: bool
) -> Seccomp | None:
    """The OCI `linux.seccomp` object, or None for no filter.

    None for an unset profile, UNCONFINED and a privileged container (CRI SecurityProfile). InvalidArgument if the
    profile's file cannot be read.
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
        document = msgspec.json.decode(path.read_bytes(), type=Profile)
    except (OSError, ValueError, msgspec.DecodeError) as error:
        if profile.kind is ProfileKind.RUNTIME_DEFAULT:
            field = "runtime.seccomp_profile"
        raise InvalidArgument(field, f"cannot read the seccomp profile {path}: {error}") from error
    return resolve(document, capabilities=capabilities, machine=platform.machine())


def resolve(profile: Profile, *, capabilities: frozenset[str], machine: str) -> Seccomp:
    """Evaluate the condition of each entry for a container's capabilities and this node's architecture."""
    name, native = _ARCHITECTURES.get(machine, (machine, ""))
    mapped = next((each for each in profile.arch_map or () if each.architecture == native), None)
    return Seccomp(
        default_action=profile.default_action,
        default_errno_ret=profile.default_errno_ret,
        architectures=profile.architectures or ((native, *(mapped.sub_architectures or ())) if mapped else ()),
        flags=profile.flags,
        syscalls=tuple(_syscall(each) for each in profile.syscalls or () if _applies(each, capabilities, name)),
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
        args=entry.args or (),
    )
