# SPDX-License-Identifier: Apache-2.0
"""Changes to one container that are made after its OCI spec is known: what NRI plugins want of it.

Where an adjustment names a thing, None in its place stands for its removal. The parts are those of the OCI runtime
spec, under its names; what the OCI runtime is too old to know, it passes over.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import msgspec
from msgspec import field

from pvecri.model import Propagation, Resources
from pvecri.oci.cdi import Hook
from pvecri.oci.devices import HostDevice

Json = dict[str, Any]


class _Part(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """The base of the parts of an OCI spec."""


class AddedMount(_Part, frozen=True):
    """A mount; `source` is what the kernel takes for the `type`, a path of the node for a bind mount."""

    destination: str
    type: str = ""
    source: str = ""
    options: tuple[str, ...] = ()

    @property
    def is_bind(self) -> bool:
        """Whether it shows a part of the node's file tree."""
        return self.type == "bind" or "bind" in self.options or "rbind" in self.options

    @property
    def propagation(self) -> Propagation:
        """How mounts below it propagate."""
        return next((each for each in Propagation if each.value in self.options), Propagation.PRIVATE)


class DeviceAccess(_Part, frozen=True):
    """An entry of the device allow-list; no number means any."""

    allow: bool = field(default=False)
    type: str = "a"
    major: int | None = None
    minor: int | None = None
    access: str = "rwm"

    def described(self) -> Json:
        """As the OCI spec has it: `allow` is always said."""
        return {"allow": self.allow, "type": self.type, "access": self.access} | {
            name: value for name, value in (("major", self.major), ("minor", self.minor)) if value is not None
        }


class Rlimit(_Part, frozen=True):
    """A POSIX resource limit; `type` is its name, such as RLIMIT_NOFILE."""

    type: str
    hard: int
    soft: int

    def described(self) -> Json:
        """As the OCI spec has it: zeros are said."""
        return {"type": self.type, "hard": self.hard, "soft": self.soft}


class IoPriority(_Part, frozen=True):
    """`process.ioPriority`; an empty class takes it away."""

    class_: str = field(default="", name="class")
    priority: int = 0


class Scheduler(_Part, frozen=True):
    """`process.scheduler`; an empty policy takes it away. Times are nanoseconds."""

    policy: str = ""
    nice: int = 0
    priority: int = 0
    flags: tuple[str, ...] = ()
    runtime: int = 0
    deadline: int = 0
    period: int = 0


class SyscallArgument(_Part, frozen=True, omit_defaults=False):
    """A condition on one argument of a system call."""

    index: int
    value: int
    value_two: int
    op: str


class Syscall(_Part, frozen=True):
    """What to do about some system calls."""

    names: tuple[str, ...]
    action: str
    errno_ret: int | None = None
    args: tuple[SyscallArgument, ...] = ()


class Seccomp(_Part, frozen=True):
    """`linux.seccomp`."""

    default_action: str
    default_errno_ret: int | None = None
    architectures: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    listener_path: str = ""
    listener_metadata: str = ""
    syscalls: tuple[Syscall, ...] = ()


class Rdt(_Part, frozen=True):
    """`linux.intelRdt`; one that says nothing takes it away."""

    clos_id: str | None = field(default=None, name="closID")
    schemata: tuple[str, ...] | None = None
    enable_monitoring: bool | None = None


class MemoryPolicy(_Part, frozen=True):
    """`linux.memoryPolicy`: set_mempolicy(2)."""

    mode: str = ""
    nodes: str = ""
    flags: tuple[str, ...] = ()


class Adjustment(msgspec.Struct, frozen=True, kw_only=True):
    """All changes to a container. `namespaces` are paths by type, empty for a new one; `net_devices` the names
    inside the container by the node's.
    """

    annotations: dict[str, str | None] = {}
    env: dict[str, str | None] = {}
    args: tuple[str, ...] = ()
    mounts: dict[str, AddedMount | None] = {}
    devices: dict[str, HostDevice | None] = {}
    device_rules: tuple[DeviceAccess, ...] = ()
    cdi_devices: tuple[str, ...] = ()
    hooks: tuple[Hook, ...] = ()
    rlimits: tuple[Rlimit, ...] = ()
    resources: Resources = Resources()
    oom_score_adj: int | None = None
    namespaces: dict[str, str | None] = {}
    sysctls: dict[str, str | None] = {}
    net_devices: dict[str, str | None] = {}
    io_priority: IoPriority | None = None
    scheduler: Scheduler | None = None
    seccomp: Seccomp | None = None
    rdt: Rdt | None = None
    memory_policy: MemoryPolicy | None = None


def apply(document: Json, adjustment: Adjustment) -> None:
    """Make the changes in an OCI spec: all but devices, limits and OOM score, which its plan has already."""
    _change(document["annotations"], adjustment.annotations)
    _apply_process(document["process"], adjustment)
    _apply_mounts(document, adjustment.mounts)
    for hook in adjustment.hooks:
        document.setdefault("hooks", {}).setdefault(hook.hook_name, []).append(hook.described())
    _apply_linux(document["linux"], adjustment)


def _apply_process(process: Json, adjustment: Adjustment) -> None:
    if adjustment.env:
        variables = dict(entry.partition("=")[::2] for entry in process["env"])
        _change(variables, adjustment.env)
        process["env"] = [f"{name}={value}" for name, value in variables.items()]
    if adjustment.args:
        process["args"] = list(adjustment.args)
    if adjustment.rlimits:
        changed = {each.type for each in adjustment.rlimits}
        kept = [each for each in process.get("rlimits", ()) if each["type"] not in changed]
        process["rlimits"] = kept + [each.described() for each in adjustment.rlimits]
    _put(process, "ioPriority", adjustment.io_priority)
    _put(process, "scheduler", adjustment.scheduler)


def _apply_linux(linux: Json, adjustment: Adjustment) -> None:
    linux["resources"]["devices"] += [rule.described() for rule in adjustment.device_rules]
    if adjustment.namespaces:
        paths = {each["type"]: each.get("path", "") for each in linux["namespaces"]}
        _change(paths, adjustment.namespaces)
        linux["namespaces"] = [{"type": kind} | ({"path": path} if path else {}) for kind, path in paths.items()]
    if adjustment.sysctls:
        _change(linux.setdefault("sysctl", {}), adjustment.sysctls)
    if adjustment.net_devices:
        named = {device: {"name": name} for device, name in adjustment.net_devices.items() if name is not None}
        linux["netDevices"] = linux.get("netDevices", {}) | named
    _put(linux, "seccomp", adjustment.seccomp)
    _put(linux, "intelRdt", adjustment.rdt)
    _put(linux, "memoryPolicy", adjustment.memory_policy)


def _apply_mounts(document: Json, mounts: Mapping[str, AddedMount | None]) -> None:
    """The new ones replace what was at their places, and parents are mounted before what is below them."""
    if not mounts:
        return
    kept = [each for each in document["mounts"] if each["destination"] not in mounts]
    added = [msgspec.to_builtins(mount) for mount in mounts.values() if mount is not None]
    document["mounts"] = sorted(
        itertools.chain(kept, added), key=lambda mount: len(PurePosixPath(mount["destination"]).parts)
    )
    for mode in (Propagation.HOST_TO_CONTAINER, Propagation.BIDIRECTIONAL):
        if any(mount is not None and mount.propagation is mode for mount in mounts.values()):
            _propagate(document["linux"], mode)


def _propagate(linux: Json, wanted: Propagation) -> None:
    """A mount that shall propagate needs a root that does not cut it off."""
    if linux["rootfsPropagation"] != Propagation.BIDIRECTIONAL.value:
        linux["rootfsPropagation"] = wanted.value


def _change(table: dict[str, str], changes: Mapping[str, str | None]) -> None:
    for name, value in changes.items():
        table.pop(name, None)
        if value is not None:
            table[name] = value


def _put(table: Json, name: str, part: _Part | None) -> None:
    """Replace a part; one without content is taken away."""
    if part is None:
        return
    described = msgspec.to_builtins(part)
    if described:
        table[name] = described
    else:
        table.pop(name, None)
