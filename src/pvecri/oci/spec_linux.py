# SPDX-License-Identifier: Apache-2.0
"""The `linux` object of an OCI spec: namespaces, cgroup and resources, devices, seccomp, hidden paths."""

from __future__ import annotations

from collections.abc import Iterable

from pvecri.errors import InvalidArgument
from pvecri.model import IdMapping, NamespaceMode, ProfileKind, Propagation, Resources
from pvecri.oci import apparmor, capabilities
from pvecri.oci.abilities import Abilities
from pvecri.oci.devices import HostDevice
from pvecri.oci.plan import Json, Plan

SHARED_PID = "shared-pid"
"""The name of the pin of the PID namespace that a pod's containers share."""

_SECURITY = "config.linux.security_context"


def linux(plan: Plan) -> Json:
    """The whole object."""
    security = plan.config.security
    described: Json = {
        "namespaces": namespaces(plan),
        "cgroupsPath": plan.cgroup,
        "resources": resources(plan),
        "devices": [] if plan.mappings else [_device(device) for device in plan.devices],
        "rootfsPropagation": _rootfs_propagation(plan),
    }
    if plan.mappings and plan.abilities.oci_runtime.wants_mappings_with_userns_path:
        described |= id_mappings(plan.mappings)
    if plan.seccomp is not None:
        described["seccomp"] = plan.seccomp
    if not plan.privileged:
        described |= {"maskedPaths": list(security.masked_paths), "readonlyPaths": list(security.readonly_paths)}
    return described


def id_mappings(mappings: Iterable[IdMapping]) -> Json:
    """`uidMappings` and `gidMappings`, which are the same here."""
    rows = [{"containerID": each.container_id, "hostID": each.host_id, "size": each.length} for each in mappings]
    return {"uidMappings": rows, "gidMappings": rows}


def namespaces(plan: Plan) -> list[Json]:
    """The pod's by path; a mount namespace of its own; the pid namespace as the request says."""
    options = plan.config.security.namespaces
    pod = plan.sandbox.security.namespaces
    joined = {
        "user": bool(plan.mappings),
        "network": pod.network is not NamespaceMode.NODE,
        "uts": pod.network is not NamespaceMode.NODE,
        "ipc": pod.ipc is not NamespaceMode.NODE,
    }
    files = {"user": "user", "network": "net", "uts": "uts", "ipc": "ipc"}
    described: list[Json] = [{"type": "mount"}]
    described += [
        {"type": kind, "path": f"{plan.namespace_dir}/{files[kind]}"} for kind, wanted in joined.items() if wanted
    ]
    described += _pid_namespace(options.pid, plan)
    if plan.abilities.cgroups.pure_v2 and not plan.privileged:
        described.append({"type": "cgroup"})
    return described


def _pid_namespace(mode: NamespaceMode, plan: Plan) -> list[Json]:
    """A new one, the target's or the one that the pod's containers share; none means the node's.

    Never the one that the OCI runtime itself is in, unless that is the node's: see docs/decisions/0064.
    """
    if mode is NamespaceMode.CONTAINER:
        return [{"type": "pid"}]
    if mode is NamespaceMode.TARGET:
        return [{"type": "pid", "path": f"/proc/{plan.target_pid}/ns/pid"}]
    if plan.sandbox.security.namespaces.pid is NamespaceMode.NODE:
        return []
    return [{"type": "pid", "path": f"{plan.namespace_dir}/{SHARED_PID}"}]


def resources(plan: Plan) -> Json:
    """The cgroup's limits, and the devices it may use."""
    described = limits(plan.config.resources, plan.abilities)
    described["devices"] = device_rules(plan)
    if plan.pids_limit > 0 and "pids" in plan.abilities.controllers:
        described.setdefault("pids", {"limit": plan.pids_limit})
    return described


def limits(wanted: Resources, abilities: Abilities) -> Json:
    """The limits that the CRI can set, and change; what this machine has no controller for is left out."""
    described: Json = {"cpu": cpu(wanted), "memory": memory(wanted, abilities)}
    if "hugetlb" in abilities.controllers:
        described["hugepageLimits"] = [
            {"pageSize": entry.page_size, "limit": entry.limit} for entry in wanted.hugepage_limits
        ]
    if "pids" in abilities.controllers and wanted.pids_limit:
        described["pids"] = {"limit": wanted.pids_limit}
    if abilities.cgroups.pure_v2 and wanted.unified:
        described["unified"] = wanted.unified
    return {key: value for key, value in described.items() if value}


def cpu(wanted: Resources) -> Json:
    """Shares, quota and period (microseconds) and cpuset; 0 means not said."""
    described = {
        "shares": wanted.cpu_shares,
        "quota": wanted.cpu_quota,
        "period": wanted.cpu_period,
        "realtimeRuntime": wanted.cpu_realtime_runtime,
        "realtimePeriod": wanted.cpu_realtime_period,
        "cpus": wanted.cpuset_cpus,
        "mems": wanted.cpuset_mems,
    }
    return {key: value for key, value in described.items() if value}


def memory(wanted: Resources, abilities: Abilities) -> Json:
    """Limits in bytes. `swap` is memory and swap together; without a wish it equals the limit: no swap."""
    described = {"reservation": wanted.memory_reservation} if wanted.memory_reservation else {}
    if not wanted.memory_limit:
        return described
    described["limit"] = wanted.memory_limit
    if abilities.swap_limit:
        described["swap"] = wanted.memory_swap_limit or wanted.memory_limit
    return described


def device_rules(plan: Plan) -> list[Json]:
    """The device allow-list; the OCI runtime adds null, zero and the other harmless ones itself."""
    denied: Json = {"allow": False, "access": "rwm"}
    if plan.privileged:
        # Not `a`: version 1 refuses to give a child group "all" when its parent holds an explicit list.
        return [denied, *({"allow": True, "type": kind, "access": "rwm"} for kind in "cb")]
    return [denied, *(_device_rule(device) for device in plan.devices)]


def _device_rule(device: HostDevice) -> Json:
    return {
        "allow": True,
        "type": device.kind,
        "major": device.major,
        "minor": device.minor,
        "access": device.access,
    }


def _device(device: HostDevice) -> Json:
    return {
        "path": device.container_path,
        "type": device.kind,
        "major": device.major,
        "minor": device.minor,
        "fileMode": device.mode,
        "uid": device.uid,
        "gid": device.gid,
    }


def _rootfs_propagation(plan: Plan) -> str:
    """A mount that shall propagate needs a root that does not cut it off."""
    modes = {bind.propagation for bind in plan.binds}
    for mode in (Propagation.BIDIRECTIONAL.value, Propagation.HOST_TO_CONTAINER.value):
        if mode in modes:
            return mode
    return Propagation.PRIVATE.value


def ambient_capabilities(plan: Plan) -> frozenset[str]:
    """Capabilities that a process without file capabilities keeps over execve; each must also be held."""
    wanted = capabilities.canonical(
        plan.config.security.capabilities.ambient, f"{_SECURITY}.capabilities.add_ambient_capabilities"
    )
    return wanted & plan.capabilities


def apparmor_profile(plan: Plan) -> str:
    """The profile's name, or empty for none; InvalidArgument when one is demanded that cannot be had."""
    profile, abilities = plan.config.security.apparmor, plan.abilities
    if profile is not None and profile.kind is ProfileKind.LOCALHOST:
        field = f"{_SECURITY}.apparmor.localhost_ref"
        if not abilities.apparmor:
            raise InvalidArgument(field, "this node's kernel does not have AppArmor enabled")
        if not apparmor.is_loaded(profile.localhost_ref):
            raise InvalidArgument(field, f"the profile {profile.localhost_ref!r} is not loaded on this node")
        return profile.localhost_ref
    if plan.privileged or not abilities.apparmor_default:
        return ""
    unconfined = profile is not None and profile.kind is ProfileKind.UNCONFINED
    return "" if unconfined else apparmor.DEFAULT_PROFILE
