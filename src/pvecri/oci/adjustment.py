# SPDX-License-Identifier: Apache-2.0
"""Changes to a container's OCI spec that NRI plugins make in CreateContainer (NRI ContainerAdjustment).

In the tables of an adjustment None stands for a removal. Objects that the OCI runtime is too old for (scheduler
before runc 1.2, netDevices and memoryPolicy before runtime-spec 1.3) are ignored by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from pvecri.model import Resources
from pvecri.oci.cdi import Hook, add_hooks
from pvecri.oci.devices import HostDevice
from pvecri.oci.runtime_spec import (
    DeviceRule,
    IntelRdt,
    IoPriority,
    Linux,
    MemoryPolicy,
    Mount,
    Namespace,
    NetDevice,
    Process,
    Rlimit,
    Scheduler,
    Seccomp,
    Spec,
    rootfs_propagation,
)

T = TypeVar("T")


class Adjustment(msgspec.Struct, frozen=True, kw_only=True):
    """`namespaces` are paths by type, empty for a new one; `net_devices` names in the container by the node's.

    `io_priority`, `scheduler`, `rdt` and `memory_policy` replace the whole object, and without content remove it.
    """

    annotations: dict[str, str | None] = {}
    env: dict[str, str | None] = {}
    args: tuple[str, ...] = ()
    mounts: dict[str, Mount | None] = {}
    devices: dict[str, HostDevice | None] = {}
    device_rules: tuple[DeviceRule, ...] = ()
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
    rdt: IntelRdt | None = None
    memory_policy: MemoryPolicy | None = None


def apply(spec: Spec, adjustment: Adjustment) -> Spec:
    """The spec with the changes, without devices, limits and OOM score: those are in its plan already."""
    return replace(
        spec,
        annotations=_changed(spec.annotations, adjustment.annotations),
        process=_process(spec.process, adjustment),
        mounts=_mounts(spec.mounts, adjustment.mounts),
        hooks=add_hooks(spec.hooks, adjustment.hooks),
        linux=_linux(spec.linux, adjustment),
    )


def _process(process: Process, adjustment: Adjustment) -> Process:
    variables = _changed(dict(entry.partition("=")[::2] for entry in process.env), adjustment.env)
    limited = {each.type for each in adjustment.rlimits}
    return replace(
        process,
        env=tuple(f"{name}={value}" for name, value in variables.items()) if adjustment.env else process.env,
        args=adjustment.args or process.args,
        rlimits=(*(each for each in process.rlimits if each.type not in limited), *adjustment.rlimits),
        io_priority=_replaced(process.io_priority, adjustment.io_priority, IoPriority()),
        scheduler=_replaced(process.scheduler, adjustment.scheduler, Scheduler()),
    )


def _linux(linux: Linux, adjustment: Adjustment) -> Linux:
    paths = _changed({each.type: each.path for each in linux.namespaces}, adjustment.namespaces)
    net_devices = {
        device: None if name is None else NetDevice(name=name) for device, name in adjustment.net_devices.items()
    }
    modes = {mount.propagation.value for mount in adjustment.mounts.values() if mount is not None}
    return replace(
        linux,
        resources=replace(linux.resources, devices=(*linux.resources.devices, *adjustment.device_rules)),
        namespaces=tuple(Namespace(type=kind, path=path) for kind, path in paths.items()),
        sysctl=_changed(linux.sysctl, adjustment.sysctls),
        net_devices=_changed(linux.net_devices, net_devices),
        rootfs_propagation=rootfs_propagation({linux.rootfs_propagation, *modes}),
        seccomp=adjustment.seccomp or linux.seccomp,
        intel_rdt=_replaced(linux.intel_rdt, adjustment.rdt, IntelRdt()),
        memory_policy=_replaced(linux.memory_policy, adjustment.memory_policy, MemoryPolicy()),
    )


def _mounts(present: tuple[Mount, ...], changes: Mapping[str, Mount | None]) -> tuple[Mount, ...]:
    """New mounts replace those at their places, and parents are mounted before what is below them."""
    if not changes:
        return present
    kept = [each for each in present if each.destination not in changes]
    added = [mount for mount in changes.values() if mount is not None]
    return tuple(sorted([*kept, *added], key=lambda mount: len(PurePosixPath(mount.destination).parts)))


def _changed(table: Mapping[str, T], changes: Mapping[str, T | None]) -> dict[str, T]:
    """The table with changes, None being a removal; a replaced entry moves to the end."""
    kept = {name: value for name, value in table.items() if name not in changes}
    return kept | {name: value for name, value in changes.items() if value is not None}


def _replaced(present: T | None, wanted: T | None, empty: T) -> T | None:
    """The wanted part; the empty one removes it."""
    if wanted is None:
        return present
    return None if wanted == empty else wanted
