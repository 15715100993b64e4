# SPDX-License-Identifier: Apache-2.0
"""Seccomp profiles: from the containers' profile format to the OCI spec's `linux.seccomp`.

The default profile is the file that the containers tools share (containers-common); its entries can be
conditional on capabilities and architectures, which the OCI format does not have.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

from pvecri.errors import InvalidArgument
from pvecri.model import ProfileKind, SecurityProfile

_ARCHITECTURES = {"x86_64": ("amd64", "SCMP_ARCH_X86_64"), "aarch64": ("arm64", "SCMP_ARCH_AARCH64")}


def for_container(
    profile: SecurityProfile | None, *, default: Path, capabilities: frozenset[str], privileged: bool
) -> dict[str, Any] | None:
    """The OCI `linux.seccomp` object, or None for no filter.

    No profile said, or UNCONFINED, or a privileged container: none, as the CRI has it. InvalidArgument when a
    localhost profile cannot be read.
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
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        if profile.kind is ProfileKind.RUNTIME_DEFAULT:
            field = "runtime.seccomp_profile"
        raise InvalidArgument(field, f"cannot read the seccomp profile {path}: {error}") from error
    return resolve(document, capabilities=capabilities, machine=platform.machine())


def resolve(document: dict[str, Any], *, capabilities: frozenset[str], machine: str) -> dict[str, Any]:
    """Decide each conditional entry of a profile; an OCI profile passes unchanged."""
    name, native = _ARCHITECTURES.get(machine, (machine, ""))
    resolved: dict[str, Any] = {
        key: document[key] for key in ("defaultAction", "defaultErrnoRet", "flags") if key in document
    }
    architectures = document.get("architectures") or _architectures(document.get("archMap", ()), native)
    if architectures:
        resolved["architectures"] = architectures
    resolved["syscalls"] = [
        _syscall(entry) for entry in document.get("syscalls") or () if _applies(entry, capabilities, name)
    ]
    return resolved


def _architectures(arch_map: Any, native: str) -> list[str]:
    for entry in arch_map:
        if entry.get("architecture") == native:
            return [native, *entry.get("subArchitectures", ())]
    return []


def _applies(entry: dict[str, Any], capabilities: frozenset[str], architecture: str) -> bool:
    includes, excludes = entry.get("includes") or {}, entry.get("excludes") or {}
    if includes.get("arches") and architecture not in includes["arches"]:
        return False
    if not capabilities.issuperset(includes.get("caps") or ()):
        return False
    if architecture in (excludes.get("arches") or ()):
        return False
    return not capabilities.intersection(excludes.get("caps") or ())


def _syscall(entry: dict[str, Any]) -> dict[str, Any]:
    names = entry.get("names") or [entry["name"]]
    resolved: dict[str, Any] = {"names": names, "action": entry["action"]}
    if entry.get("errnoRet") is not None and entry["action"] in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
        resolved["errnoRet"] = entry["errnoRet"]
    if entry.get("args"):
        resolved["args"] = entry["args"]
    return resolved
