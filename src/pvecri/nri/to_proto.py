# SPDX-License-Identifier: Apache-2.0
"""Pods and containers as NRI's protobuf messages.

A container's content is that of its OCI spec, in which request, image, pod and earlier adjustments are merged.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pvecri.model import ContainerState, NamespaceMode, ProfileKind, Resources, SandboxConfig, SecurityProfile
from pvecri.nri.proto import nri_pb2 as pb
from pvecri.oci import runtime_spec
from pvecri.oci.runtime_spec import Spec
from pvecri.pods.container import bundle
from pvecri.pods.registry import ContainerEntry, PodEntry

_STATES = {
    ContainerState.CREATED: pb.CONTAINER_CREATED,
    ContainerState.RUNNING: pb.CONTAINER_RUNNING,
    ContainerState.EXITED: pb.CONTAINER_STOPPED,
    ContainerState.UNKNOWN: pb.CONTAINER_UNKNOWN,
}
_PROFILES = {
    ProfileKind.RUNTIME_DEFAULT: pb.SecurityProfile.RUNTIME_DEFAULT,
    ProfileKind.UNCONFINED: pb.SecurityProfile.UNCONFINED,
    ProfileKind.LOCALHOST: pb.SecurityProfile.LOCALHOST,
}
HOOKS = {
    "prestart": "prestart",
    "create_runtime": "createRuntime",
    "create_container": "createContainer",
    "start_container": "startContainer",
    "poststart": "poststart",
    "poststop": "poststop",
}
"""The kinds of OCI hooks: NRI's names and the OCI spec's."""

_NAMESPACES = {"network": "net", "ipc": "ipc", "uts": "uts", "pid": "pid", "user": "user"}
"""The pod's namespaces: types in the OCI spec, and file names of their pins."""


# -- pods -----------------------------------------------------------------------------------------------------


def pod(live: PodEntry) -> pb.PodSandbox:
    """A pod; `pid` is the host PID of its CT's init."""
    value, config = live.value, live.value.config
    return pb.PodSandbox(
        id=value.id,
        name=config.metadata.name,
        uid=config.metadata.uid,
        namespace=config.metadata.namespace,
        labels=config.labels,
        annotations=config.annotations,
        runtime_handler=value.runtime_handler,
        linux=pb.LinuxPodSandbox(
            pod_overhead=resources(config.overhead),
            pod_resources=resources(config.resources),
            cgroup_parent=config.cgroup_parent,
            cgroups_path=live.cgroups.ct,
            namespaces=[
                pb.LinuxNamespace(type=kind, path=str(live.namespace(_NAMESPACES[kind])))
                for kind in _own_namespaces(config, mapped=bool(value.mappings))
            ],
            resources=resources(config.resources),
        ),
        pid=live.init.pid if live.init is not None else 0,
        ips=value.ips,
    )


def _own_namespaces(config: SandboxConfig, *, mapped: bool) -> list[str]:
    options = config.security.namespaces
    own = {
        "network": options.network is not NamespaceMode.NODE,
        "ipc": options.ipc is not NamespaceMode.NODE,
        "uts": options.network is not NamespaceMode.NODE,
        "pid": options.pid is not NamespaceMode.NODE,
        "user": mapped,
    }
    return [kind for kind, is_own in own.items() if is_own]


def resources(limits: Resources) -> pb.LinuxResources:
    """Limits; unset ones are omitted."""
    message = pb.LinuxResources()
    memory, cpu = message.memory, message.cpu
    for wrapped, value in (
        (memory.limit, limits.memory_limit),
        (memory.swap, limits.memory_swap_limit),
        (memory.reservation, limits.memory_reservation),
        (cpu.shares, limits.cpu_shares),
        (cpu.quota, limits.cpu_quota),
        (cpu.period, limits.cpu_period),
        (cpu.realtime_runtime, limits.cpu_realtime_runtime),
        (cpu.realtime_period, limits.cpu_realtime_period),
    ):
        if value:
            wrapped.value = value
    if limits.pids_limit:
        message.pids.limit = limits.pids_limit
    cpu_sets = {"cpus": limits.cpuset_cpus, "mems": limits.cpuset_mems}
    for name, text in cpu_sets.items():
        if text:
            setattr(cpu, name, text)
    for entry in limits.hugepage_limits:
        message.hugepage_limits.add(page_size=entry.page_size, limit=entry.limit)
    message.unified.update(limits.unified)
    return message


# -- containers -----------------------------------------------------------------------------------------------


def container(live: ContainerEntry) -> pb.Container:
    """A container; `pid` is 0 unless it runs. Without the OCI spec, which is lost in a reboot, less is set."""
    value, config = live.value, live.value.config
    message = pb.Container(
        id=value.id,
        pod_sandbox_id=value.sandbox_id,
        name=config.metadata.name,
        state=_STATES[value.state],
        labels=config.labels,
        annotations=config.annotations,
        pid=live.process.pid if live.process is not None else 0,
        created_at=value.created_at,
        started_at=value.started_at,
        finished_at=value.finished_at,
        exit_code=value.exit_code,
        status_reason=value.reason,
        status_message=value.message,
        CDI_devices=[pb.CDIDevice(name=name) for name in config.cdi_devices],
        # Present even if empty: Go plugins dereference them without a test for nil.
        hooks=pb.Hooks(),
        linux=pb.LinuxContainer(resources=pb.LinuxResources(cpu=pb.LinuxCPU())),
        user=pb.User(),
        image=pb.Image(
            name=config.user_specified_image or config.image,
            digest=value.image_reference.partition("@")[2],
            config_digest=value.image_id,
        ),
    )
    message.linux.seccomp_profile.CopyFrom(
        _profile(config.security.seccomp, privileged=config.security.privileged)
    )
    with suppress(FileNotFoundError):
        _add_spec(message, runtime_spec.decode(live.bundle.spec.read_bytes()), bundle.device_nodes(live.bundle))
    return message


def _add_spec(message: pb.Container, spec: Spec, device_nodes: Path) -> None:
    process = spec.process
    if spec.annotations:
        message.annotations.clear()
        message.annotations.update(spec.annotations)
    message.args.extend(process.args)
    message.env.extend(process.env)
    message.rlimits.extend(
        pb.POSIXRlimit(type=each.type, hard=each.hard, soft=each.soft) for each in process.rlimits
    )
    message.user.uid, message.user.gid = process.user.uid, process.user.gid
    message.user.additional_gids.extend(process.user.additional_gids or ())
    for name, kind in HOOKS.items():
        for each in spec.hooks.get(kind, ()):
            hook = getattr(message.hooks, name).add(path=each.path, args=each.args, env=each.env)
            _wrap(hook, {"timeout": each.timeout})
    message.linux.MergeFrom(_linux(spec))
    _add_mounts(message, spec, device_nodes)


def _profile(profile: SecurityProfile | None, *, privileged: bool) -> pb.SecurityProfile:
    """An unset profile means unconfined (CRI SecurityProfile)."""
    if profile is None or privileged:
        return pb.SecurityProfile(profile_type=pb.SecurityProfile.UNCONFINED)
    return pb.SecurityProfile(profile_type=_PROFILES[profile.kind], localhost_ref=profile.localhost_ref)


def _add_mounts(message: pb.Container, spec: Spec, device_nodes: Path) -> None:
    """Add mounts, and as devices the bind mounts of device nodes in a user namespace."""
    for mount in spec.mounts:
        source = Path(mount.source)
        if source.parent == device_nodes:
            _add_device_node(message, mount.destination, source)
        else:
            message.mounts.add(
                destination=mount.destination, type=mount.type, source=mount.source, options=mount.options
            )


def _add_device_node(message: pb.Container, path: str, node: Path) -> None:
    try:
        status = node.stat()
    except FileNotFoundError:
        return
    device = message.linux.devices.add(
        path=path,
        type="b" if stat.S_ISBLK(status.st_mode) else "c",
        major=os.major(status.st_rdev),
        minor=os.minor(status.st_rdev),
    )
    device.file_mode.value = stat.S_IMODE(status.st_mode)


def _linux(spec: Spec) -> pb.LinuxContainer:
    linux = spec.linux
    message = pb.LinuxContainer(
        namespaces=[pb.LinuxNamespace(type=each.type, path=each.path) for each in linux.namespaces],
        resources=_resources(linux.resources),
        cgroups_path=linux.cgroups_path,
        sysctl=linux.sysctl,
        net_devices={name: pb.LinuxNetDevice(name=each.name) for name, each in linux.net_devices.items()},
    )
    for each in linux.devices or ():
        device = message.devices.add(path=each.path, type=each.type, major=each.major, minor=each.minor)
        _wrap(device, {"file_mode": each.file_mode, "uid": each.uid, "gid": each.gid})
    _wrap(message, {"oom_score_adj": spec.process.oom_score_adj})
    if linux.seccomp is not None:
        message.seccomp_policy.CopyFrom(_seccomp(linux.seccomp))
    _add_scheduling(message, spec)
    return message


def _add_scheduling(message: pb.LinuxContainer, spec: Spec) -> None:
    """Add what only plugins can have set."""
    if (wanted := spec.process.io_priority) is not None:
        message.io_priority.priority = wanted.priority
        setattr(message.io_priority, "class", pb.IOPrioClass.Value(wanted.class_))
    if (scheduler := spec.process.scheduler) is not None:
        for name in ("nice", "priority", "runtime", "deadline", "period"):
            setattr(message.scheduler, name, getattr(scheduler, name))
        message.scheduler.policy = pb.LinuxSchedulerPolicy.Value(scheduler.policy)  # type: ignore[assignment]
        message.scheduler.flags.extend(
            pb.LinuxSchedulerFlag.Value(flag)  # type: ignore[misc]
            for flag in scheduler.flags
        )
    if (rdt := spec.linux.intel_rdt) is not None:
        _wrap(message.rdt, {"clos_id": rdt.clos_id, "enable_monitoring": rdt.enable_monitoring})
        if rdt.schemata is not None:
            message.rdt.schemata.value.extend(rdt.schemata)


def _resources(limits: runtime_spec.Resources) -> pb.LinuxResources:
    message = pb.LinuxResources(
        hugepage_limits=[
            pb.HugepageLimit(page_size=each.page_size, limit=each.limit) for each in limits.hugepage_limits
        ],
        unified=limits.unified,
    )
    if (memory := limits.memory) is not None:
        _wrap(message.memory, {name: getattr(memory, name) for name in ("limit", "reservation", "swap")})
    if (cpu := limits.cpu) is not None:
        times = ("shares", "quota", "period", "realtime_runtime", "realtime_period")
        _wrap(message.cpu, {name: getattr(cpu, name) for name in times})
        message.cpu.cpus, message.cpu.mems = cpu.cpus, cpu.mems
    for each in limits.devices:
        rule = message.devices.add(allow=each.allow, type=each.type, access=each.access)
        _wrap(rule, {"major": each.major, "minor": each.minor})
    if limits.pids is not None:
        message.pids.limit = limits.pids.limit
    return message


def _seccomp(policy: runtime_spec.Seccomp) -> pb.LinuxSeccomp:
    message = pb.LinuxSeccomp(
        default_action=policy.default_action,
        architectures=policy.architectures,
        flags=policy.flags or (),
        listener_path=policy.listener_path,
        listener_metadata=policy.listener_metadata,
    )
    _wrap(message, {"default_errno": policy.default_errno_ret})
    for each in policy.syscalls or ():
        syscall = message.syscalls.add(names=each.names, action=each.action)
        _wrap(syscall, {"errno_ret": each.errno_ret})
        for argument in each.args:
            syscall.args.add(
                index=argument.index, value=argument.value, value_two=argument.value_two or 0, op=argument.op
            )
    return message


def _wrap(message: Any, values: Mapping[str, Any]) -> None:
    """Set wrapper fields; None leaves them absent."""
    for name, value in values.items():
        if value is not None:
            getattr(message, name).value = value
            getattr(message, name).SetInParent()
