# SPDX-License-Identifier: Apache-2.0
"""The `linux` object of an OCI spec: namespaces, cgroup, resources, devices, seccomp and masked paths."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from pvecri import model
from pvecri.errors import InvalidArgument
from pvecri.model import NamespaceMode, ProfileKind
from pvecri.oci import apparmor, capabilities
from pvecri.oci.devices import HostDevice
from pvecri.oci.features import HostFeatures
from pvecri.oci.plan import Plan
from pvecri.oci.runtime_spec import (
    Cpu,
    Device,
    DeviceRule,
    HugepageLimit,
    IdMapping,
    Linux,
    Memory,
    Namespace,
    Pids,
    Resources,
    rootfs_propagation,
)

SHARED_PID = "shared-pid"
"""The file name of the pin of the PID namespace that a pod's containers share."""

_SECURITY = "config.linux.security_context"


def linux(plan: Plan) -> Linux:
    """The `linux` object."""
    security, runtime = plan.config.security, plan.features.oci_runtime
    mapped = plan.mappings if runtime.needs_mappings_with_userns_path else ()
    return Linux(
        namespaces=namespaces(plan),
        cgroups_path=plan.cgroup,
        resources=resources(plan),
        # In a user namespace mknod(2) is refused: spec_mounts binds the nodes there.
        devices=() if plan.mappings else tuple(_device(device) for device in plan.devices),
        rootfs_propagation=rootfs_propagation({bind.propagation for bind in plan.binds}),
        uid_mappings=id_mappings(mapped),
        gid_mappings=id_mappings(mapped),
        seccomp=plan.seccomp,
        masked_paths=None if plan.privileged else security.masked_paths,
        readonly_paths=None if plan.privileged else security.readonly_paths,
    )


def id_mappings(mappings: Iterable[model.IdMapping]) -> tuple[IdMapping, ...]:
    """`uidMappings`, and `gidMappings` as well: a pod's user namespace maps UIDs and GIDs alike."""
    return tuple(
        IdMapping(container_id=each.container_id, host_id=each.host_id, size=each.length) for each in mappings
    )


def namespaces(plan: Plan) -> tuple[Namespace, ...]:
    """The pod's namespaces by path, a new mount namespace, and the PID namespace that the request selects."""
    pod = plan.sandbox.security.namespaces
    joined = {
        "user": bool(plan.mappings),
        "network": pod.network is not NamespaceMode.NODE,
        # The CRI has no mode for UTS: with the node's network a pod has the node's hostname.
        "uts": pod.network is not NamespaceMode.NODE,
        "ipc": pod.ipc is not NamespaceMode.NODE,
    }
    files = {"user": "user", "network": "net", "uts": "uts", "ipc": "ipc"}
    # On version 2 only, which is the default of CRI-O and containerd as well.
    new_cgroup = plan.features.cgroups.pure_v2 and not plan.privileged
    return (
        Namespace(type="mount"),
        *(
            Namespace(type=kind, path=f"{plan.namespace_dir}/{files[kind]}")
            for kind, wanted in joined.items()
            if wanted
        ),
        *_pid_namespace(plan.config.security.namespaces.pid, plan),
        *([Namespace(type="cgroup")] if new_cgroup else []),
    )


def _pid_namespace(mode: NamespaceMode, plan: Plan) -> list[Namespace]:
    """A new one, the target container's or the one that the pod's containers share; none means the node's.

    Never the OCI runtime's own, the CT's, unless that is the node's: a process in it that may ptrace reaches
    the node's root through conmon's /proc/PID/root (decision 0064).
    """
    if mode is NamespaceMode.CONTAINER:
        return [Namespace(type="pid")]
    if mode is NamespaceMode.TARGET:
        return [Namespace(type="pid", path=f"/proc/{plan.target_pid}/ns/pid")]
    if plan.sandbox.security.namespaces.pid is NamespaceMode.NODE:
        return []
    return [Namespace(type="pid", path=f"{plan.namespace_dir}/{SHARED_PID}")]


def resources(plan: Plan) -> Resources:
    """The cgroup's limits, and the devices it may use."""
    limited = limits(plan.config.resources, plan.features)
    # The OCI runtimes fail if they cannot set a limit: none is written without its controller.
    default_pids = plan.pids_limit > 0 and "pids" in plan.features.controllers
    pids = limited.pids or (Pids(limit=plan.pids_limit) if default_pids else None)
    return replace(limited, devices=device_rules(plan), pids=pids)


def limits(wanted: model.Resources, features: HostFeatures) -> Resources:
    """The limits that the CRI can set and update, without those that this node has no controller for.

    0 and "" in `wanted` mean unset.
    """
    cpu = Cpu(
        shares=wanted.cpu_shares or None,
        quota=wanted.cpu_quota or None,
        period=wanted.cpu_period or None,
        realtime_runtime=wanted.cpu_realtime_runtime or None,
        realtime_period=wanted.cpu_realtime_period or None,
        cpus=wanted.cpuset_cpus,
        mems=wanted.cpuset_mems,
    )
    limit = wanted.memory_limit or None
    # Swap is memory and swap together, and equals the limit if unset: no swap, as the kubelet expects. Without
    # swap accounting (version 1: swapaccount=1 on the kernel's command line) runc fails if it is set.
    swap = (wanted.memory_swap_limit or limit) if limit and features.swap_limit else None
    memory = Memory(limit=limit, reservation=wanted.memory_reservation or None, swap=swap)
    hugepages = wanted.hugepage_limits if "hugetlb" in features.controllers else ()
    pids = wanted.pids_limit if "pids" in features.controllers else 0
    return Resources(
        cpu=None if cpu == Cpu() else cpu,
        memory=None if memory == Memory() else memory,
        hugepage_limits=tuple(HugepageLimit(page_size=each.page_size, limit=each.limit) for each in hugepages),
        pids=Pids(limit=pids) if pids else None,
        unified=wanted.unified if features.cgroups.pure_v2 else {},  # runc refuses it on version 1
    )


def device_rules(plan: Plan) -> tuple[DeviceRule, ...]:
    """The device allow-list; the OCI runtime adds null, zero and the other harmless ones itself."""
    denied = DeviceRule(allow=False, access="rwm")
    if plan.privileged:
        # Not `a`: version 1 refuses to give a child group "all" if its parent has an explicit list.
        return (denied, *(DeviceRule(allow=True, type=kind, access="rwm") for kind in "cb"))
    return (
        denied,
        *(
            DeviceRule(allow=True, type=each.kind, major=each.major, minor=each.minor, access=each.access)
            for each in plan.devices
        ),
    )


def _device(device: HostDevice) -> Device:
    return Device(
        path=device.container_path,
        type=device.kind,
        major=device.major,
        minor=device.minor,
        file_mode=device.mode,
        uid=device.uid,
        gid=device.gid,
    )


def ambient_capabilities(plan: Plan) -> frozenset[str]:
    """The ambient set. The kernel allows only permitted and inheritable capabilities in it: others are dropped."""
    wanted = capabilities.canonical(
        plan.config.security.capabilities.ambient, f"{_SECURITY}.capabilities.add_ambient_capabilities"
    )
    return wanted & plan.capabilities


def apparmor_profile(plan: Plan) -> str:
    """The profile's name, empty for none; InvalidArgument if a localhost profile is not loaded."""
    profile, features = plan.config.security.apparmor, plan.features
    if profile is not None and profile.kind is ProfileKind.LOCALHOST:
        field = f"{_SECURITY}.apparmor.localhost_ref"
        if not features.apparmor:
            raise InvalidArgument(field, "this node's kernel does not have AppArmor enabled")
        if not apparmor.is_loaded(profile.localhost_ref):
            raise InvalidArgument(field, f"the profile {profile.localhost_ref!r} is not loaded on this node")
        return profile.localhost_ref
    if plan.privileged or not features.apparmor_default:
        return ""
    unconfined = profile is not None and profile.kind is ProfileKind.UNCONFINED
    return "" if unconfined else apparmor.DEFAULT_PROFILE
