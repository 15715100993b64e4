# SPDX-License-Identifier: Apache-2.0
"""The Container Device Interface, CDI specification 0.8 and earlier: devices described by vendors in spec files.

A spec file has devices of one kind and, for each, the edits of a container's OCI spec that inject it. A request
names devices by their qualified names: `vendor.com/class=name`.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from pvecri.errors import InvalidArgument
from pvecri.oci.devices import HostDevice
from pvecri.oci.runtime_spec import Hook as OciHook
from pvecri.oci.runtime_spec import Mount, Spec


class _Part(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """An object of a spec file. Unknown fields, of a newer version, are ignored."""


class DeviceNode(_Part, frozen=True):
    """A device node; unset fields are those of the host's device."""

    path: str
    host_path: str = ""
    type: str = ""
    major: int | None = None
    minor: int | None = None
    file_mode: int | None = None
    permissions: str = "rwm"
    uid: int | None = None
    gid: int | None = None


class EditMount(_Part, frozen=True):
    """A mount."""

    host_path: str
    container_path: str
    type: str = "bind"
    options: tuple[str, ...] = ("rbind", "ro")


class Hook(_Part, frozen=True):
    """An OCI hook of the kind `hook_name`, such as createRuntime."""

    hook_name: str
    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int | None = None


class Edits(_Part, frozen=True):
    """`containerEdits`."""

    env: tuple[str, ...] = ()
    device_nodes: tuple[DeviceNode, ...] = ()
    mounts: tuple[EditMount, ...] = ()
    hooks: tuple[Hook, ...] = ()
    additional_gids: tuple[int, ...] = msgspec.field(default=(), name="additionalGids")


class _Device(_Part, frozen=True):
    name: str
    container_edits: Edits = Edits()


class _Spec(_Part, frozen=True):
    kind: str
    devices: tuple[_Device, ...] = ()
    container_edits: Edits = Edits()


def find(names: Iterable[str], directories: Iterable[Path]) -> tuple[Edits, ...]:
    """The edits of the named devices: those of each spec file once, before those of each device.

    InvalidArgument names a device that no file has, or a malformed file.
    """
    wanted = list(names)
    if not wanted:
        return ()
    known = _load(directories)
    edits: dict[Path | str, Edits] = {}
    for index, name in enumerate(wanted):
        if name not in known:
            searched = ", ".join(map(str, directories))
            raise InvalidArgument(f"config.CDI_devices[{index}].name", f"no CDI spec in {searched} has {name!r}")
        path, spec, device = known[name]
        # A file's own edits apply once, however many of its devices are requested (CDI, "containerEdits").
        edits.setdefault(path, spec.container_edits)
        edits[name] = device.container_edits
    return tuple(edits.values())


def _load(directories: Iterable[Path]) -> dict[str, tuple[Path, _Spec, _Device]]:
    """All devices by qualified name, with their files; a later directory takes precedence, as CDI has it."""
    known: dict[str, tuple[Path, _Spec, _Device]] = {}
    for directory in directories:
        for path in sorted(directory.glob("*")) if directory.is_dir() else ():
            if path.suffix in (".json", ".yaml", ".yml"):
                spec = _read(path)
                known |= {f"{spec.kind}={device.name}": (path, spec, device) for device in spec.devices}
    return known


def _read(path: Path) -> _Spec:
    try:
        return msgspec.convert(_parsed(path), _Spec)
    except (OSError, ValueError, msgspec.ValidationError) as error:
        raise InvalidArgument("config.CDI_devices", f"the CDI spec {path} cannot be read: {error}") from error


def _parsed(path: Path) -> Any:
    if path.suffix == ".json":
        return json.loads(path.read_text())
    import yaml  # not at the top: most nodes have no CDI spec in YAML

    try:
        return yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


# -- editing a spec -------------------------------------------------------------------------------------------


def apply(spec: Spec, edits: Edits) -> Spec:
    """The spec with all edits but the device nodes, which `devices` has."""
    process = spec.process
    names = {entry.partition("=")[0] for entry in edits.env}
    kept = (entry for entry in process.env if entry.partition("=")[0] not in names)
    # GID 0 is ignored, as the CDI specification has it: a vendor's file must not give a container the root group.
    groups = dict.fromkeys((*(process.user.additional_gids or ()), *(gid for gid in edits.additional_gids if gid)))
    added = (
        Mount(destination=each.container_path, source=each.host_path, type=each.type, options=each.options)
        for each in edits.mounts
    )
    user = replace(process.user, additional_gids=tuple(groups))
    return replace(
        spec,
        process=replace(process, env=(*kept, *edits.env), user=user),
        mounts=(*spec.mounts, *added),
        hooks=add_hooks(spec.hooks, edits.hooks),
    )


def add_hooks(present: Mapping[str, tuple[OciHook, ...]], added: Iterable[Hook]) -> dict[str, tuple[OciHook, ...]]:
    """The `hooks` of an OCI spec with others appended to their kinds."""
    hooks = dict(present)
    for each in added:
        hook = OciHook(path=each.path, args=each.args, env=each.env, timeout=each.timeout)
        hooks[each.hook_name] = (*hooks.get(each.hook_name, ()), hook)
    return hooks


def devices(edits: Iterable[Edits]) -> tuple[HostDevice, ...]:
    """The device nodes of edits; InvalidArgument if the host has no such device."""
    return tuple(_device(node) for each in edits for node in each.device_nodes)


def _device(node: DeviceNode) -> HostDevice:
    path = node.host_path or node.path
    try:
        status = Path(path).stat()
    except OSError as error:
        raise InvalidArgument("config.CDI_devices", f"{path}: {error.strerror}") from error
    return HostDevice(
        container_path=node.path,
        kind=node.type or ("b" if stat.S_ISBLK(status.st_mode) else "c"),
        major=os.major(status.st_rdev) if node.major is None else node.major,
        minor=os.minor(status.st_rdev) if node.minor is None else node.minor,
        mode=stat.S_IMODE(status.st_mode) if node.file_mode is None else node.file_mode,
        uid=status.st_uid if node.uid is None else node.uid,
        gid=status.st_gid if node.gid is None else node.gid,
        access=node.permissions,
    )
