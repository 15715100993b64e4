# SPDX-License-Identifier: Apache-2.0
"""NRI's protobuf messages converted to the Pod Manager's values."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

from pvecri.errors import FailedPrecondition
from pvecri.model import HugepageLimit, Resources
from pvecri.nri.merge import REMOVAL
from pvecri.nri.proto import nri_pb2 as pb
from pvecri.nri.to_proto import HOOKS
from pvecri.oci.adjustment import Adjustment
from pvecri.oci.cdi import Hook
from pvecri.oci.devices import HostDevice
from pvecri.oci.runtime_spec import (
    DeviceRule,
    IntelRdt,
    IoPriority,
    MemoryPolicy,
    Mount,
    Rlimit,
    Scheduler,
    Seccomp,
    Syscall,
    SyscallArg,
)

log = logging.getLogger(__name__)

DEVICE_MODE = 0o666
"""The OCI runtimes' default mode of a device."""

_VERSION_1 = ("kernel", "kernel_tcp", "swappiness", "disable_oom_killer", "use_hierarchy")
"""Memory settings that cgroup version 2, and so Proxmox VE, does not have."""


def adjustment(wanted: pb.ContainerAdjustment, cgroup: str) -> Adjustment | None:
    """The adjustment of a container, whose cgroup is `cgroup`; None if it is empty.

    FailedPrecondition names a setting that is not supported here.
    """
    linux = wanted.linux
    if not wanted.ByteSize():
        return None
    if linux.cgroups_path not in ("", cgroup):
        raise FailedPrecondition(
            f"NRI: the cgroup {linux.cgroups_path!r} is not supported: the container's is {cgroup}, below its CT"
        )
    return Adjustment(
        annotations=_named(wanted.annotations),
        env=_named({entry.key: entry.value for entry in wanted.env}),
        args=tuple(wanted.args),
        mounts=_named({each.destination: _mount(each) for each in wanted.mounts}),
        devices=_named({each.path: _device(each) for each in wanted.linux.devices}),
        device_rules=tuple(_device_rule(each) for each in linux.resources.devices),
        cdi_devices=tuple(each.name for each in wanted.CDI_devices),
        hooks=tuple(_hook(kind, each) for kind in HOOKS for each in getattr(wanted.hooks, kind)),
        rlimits=tuple(Rlimit(type=each.type, hard=each.hard, soft=each.soft) for each in wanted.rlimits),
        resources=resources(linux.resources),
        oom_score_adj=linux.oom_score_adj.value if linux.HasField("oom_score_adj") else None,
        namespaces=_named({each.type: each.path for each in linux.namespaces}),
        sysctls=_named(linux.sysctl),
        net_devices=_named({name: device.name for name, device in linux.net_devices.items()}),
        io_priority=_io_priority(linux.io_priority) if linux.HasField("io_priority") else None,
        scheduler=_scheduler(linux.scheduler) if linux.HasField("scheduler") else None,
        seccomp=_seccomp(linux.seccomp_policy) if linux.HasField("seccomp_policy") else None,
        rdt=_rdt(linux),
        memory_policy=_memory_policy(linux.memory_policy) if linux.HasField("memory_policy") else None,
    )


def resources(wanted: pb.LinuxResources) -> Resources:
    """Limits; unset ones are 0 or empty. FailedPrecondition for a block I/O class: none can be configured.

    The swap limit, of memory and swap together, defaults to the memory limit, as in the CRI: no swap.
    """
    if wanted.blockio_class.value:
        raise FailedPrecondition(f"NRI: there is no block I/O class {wanted.blockio_class.value!r}")
    memory, cpu = wanted.memory, wanted.cpu
    ignored = [name for name in _VERSION_1 if memory.HasField(name)]
    if ignored:
        log.warning("NRI: %s of a container is a setting of cgroup version 1 and is ignored", ", ".join(ignored))
    return Resources(
        cpu_period=cpu.period.value,
        cpu_quota=cpu.quota.value,
        cpu_shares=cpu.shares.value,
        cpu_realtime_runtime=cpu.realtime_runtime.value,
        cpu_realtime_period=cpu.realtime_period.value,
        cpuset_cpus=cpu.cpus,
        cpuset_mems=cpu.mems,
        memory_limit=memory.limit.value,
        memory_swap_limit=memory.swap.value or memory.limit.value,
        memory_reservation=memory.reservation.value,
        hugepage_limits=tuple(
            HugepageLimit(page_size=each.page_size, limit=each.limit) for each in wanted.hugepage_limits
        ),
        unified=dict(wanted.unified),
        pids_limit=wanted.pids.limit,
    )


def _named(table: Mapping[str, Any]) -> dict[str, Any]:
    """The entries by name, None for a removal."""
    removed = {name.removeprefix(REMOVAL): None for name in table if name.startswith(REMOVAL)}
    return removed | {name: value for name, value in table.items() if not name.startswith(REMOVAL)}


def _mount(wanted: pb.Mount) -> Mount:
    return Mount(
        destination=wanted.destination, type=wanted.type, source=wanted.source, options=tuple(wanted.options)
    )


def _device(wanted: pb.LinuxDevice) -> HostDevice | None:
    if wanted.path.startswith(REMOVAL):
        return None
    kind = {"u": "c"}.get(wanted.type, wanted.type)  # u: mknod(1)'s unbuffered character device
    if kind not in ("c", "b"):
        raise FailedPrecondition(f"NRI: the device {wanted.path} is of type {wanted.type!r}, not c or b")
    return HostDevice(
        container_path=wanted.path,
        kind=kind,
        major=wanted.major,
        minor=wanted.minor,
        mode=wanted.file_mode.value & 0o7777 if wanted.HasField("file_mode") else DEVICE_MODE,
        uid=wanted.uid.value,
        gid=wanted.gid.value,
        # As NRI's LinuxDevice.AccessString has it.
        access="rwm" if kind == "b" else "rw",
    )


def _device_rule(wanted: pb.LinuxDeviceCgroup) -> DeviceRule:
    return DeviceRule(
        allow=wanted.allow,
        type=wanted.type or "a",
        major=wanted.major.value if wanted.HasField("major") else None,
        minor=wanted.minor.value if wanted.HasField("minor") else None,
        access=wanted.access,
    )


def _hook(kind: str, wanted: pb.Hook) -> Hook:
    return Hook(
        hook_name=HOOKS[kind],
        path=wanted.path,
        args=tuple(wanted.args),
        env=tuple(wanted.env),
        timeout=wanted.timeout.value if wanted.HasField("timeout") else None,
    )


def _io_priority(wanted: pb.LinuxIOPriority) -> IoPriority:
    kind = getattr(wanted, "class")
    if kind == pb.IOPRIO_CLASS_NONE:
        return IoPriority()
    return IoPriority(class_=_name(pb.IOPrioClass, kind), priority=wanted.priority)


def _name(enum: EnumTypeWrapper, value: int) -> str:
    """The enum's name, which the OCI spec has too; FailedPrecondition for a value of a later version."""
    try:
        return enum.Name(value)
    except ValueError:
        raise FailedPrecondition(f"NRI: {enum.DESCRIPTOR.name} {value} is unknown") from None


def _scheduler(wanted: pb.LinuxScheduler) -> Scheduler:
    if wanted.policy == pb.SCHED_NONE:
        return Scheduler()
    return Scheduler(
        policy=_name(pb.LinuxSchedulerPolicy, wanted.policy),
        nice=wanted.nice,
        priority=wanted.priority,
        flags=tuple(_name(pb.LinuxSchedulerFlag, flag) for flag in wanted.flags),
        runtime=wanted.runtime,
        deadline=wanted.deadline,
        period=wanted.period,
    )


def _seccomp(wanted: pb.LinuxSeccomp) -> Seccomp:
    return Seccomp(
        default_action=wanted.default_action,
        default_errno_ret=wanted.default_errno.value if wanted.HasField("default_errno") else None,
        architectures=tuple(wanted.architectures),
        flags=tuple(wanted.flags) or None,
        listener_path=wanted.listener_path,
        listener_metadata=wanted.listener_metadata,
        syscalls=tuple(_syscalls(wanted.syscalls)) or None,
    )


def _syscalls(wanted: Iterable[pb.LinuxSyscall]) -> Iterable[Syscall]:
    for each in wanted:
        yield Syscall(
            names=tuple(each.names),
            action=each.action,
            errno_ret=each.errno_ret.value if each.HasField("errno_ret") else None,
            args=tuple(
                SyscallArg(index=arg.index, value=arg.value, value_two=arg.value_two, op=arg.op)
                for arg in each.args
            ),
        )


def _rdt(linux: pb.LinuxContainerAdjustment) -> IntelRdt | None:
    """By `rdt`, or by `resources.rdt_class`, NRI's older field for the class alone."""
    wanted, by_class = linux.rdt, linux.resources.HasField("rdt_class")
    if not wanted.ListFields() and not by_class:
        return None
    closid = wanted.clos_id.value if wanted.HasField("clos_id") else linux.resources.rdt_class.value or None
    return IntelRdt(
        clos_id=closid,
        schemata=tuple(wanted.schemata.value) if wanted.HasField("schemata") else None,
        enable_monitoring=wanted.enable_monitoring.value if wanted.HasField("enable_monitoring") else None,
    )


def _memory_policy(wanted: pb.LinuxMemoryPolicy) -> MemoryPolicy:
    return MemoryPolicy(
        mode=_name(pb.MpolMode, wanted.mode),
        nodes=wanted.nodes,
        flags=tuple(_name(pb.MpolFlag, flag) for flag in wanted.flags),
    )
