# SPDX-License-Identifier: Apache-2.0
"""Validation of CRI requests. Errors name the field by its path in the CRI message."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from pvecri.errors import InvalidArgument
from pvecri.model import (
    ContainerConfig,
    Device,
    DnsConfig,
    Mount,
    NamespaceMode,
    NamespaceOptions,
    PortMapping,
    Propagation,
    Resources,
    SandboxConfig,
    UserNamespace,
)
from pvecri.oci.users import ID_MAX
from pvecri.pods.user_namespaces import DEFAULT_HANDLERS

HOSTNAME_MAX = 64  # bytes, the kernel's maximum (uname(2), __NEW_UTS_LEN)
NAME_MAX = 253  # Kubernetes' maximum for names of objects (RFC 1123 subdomains)
PATH_MAX = 4095
"""Bytes of a path, and below of a component (limits.h); a longer one fails in every system call."""
COMPONENT_MAX = 255
ARGUMENT_MAX = (128 << 10) - 1
"""Bytes of one argument or environment variable (MAX_ARG_STRLEN without the NUL, execve(2))."""
ARGUMENTS_MAX = (2 << 20) - (64 << 10)
"""Bytes of all of them with their pointers: a quarter of the default stack limit of 8 MiB (execve(2)), less the
arguments and the environment of the programs that execute the command.
"""
GROUPS_MAX = 65536
"""NGROUPS_MAX (setgroups(2))."""
CPU_SHARES_MAX = 262_144
"""The kernel's (MAX_SHARES); a kubelet sends no more either."""
CPU_PERIODS = range(1000, 1_000_001)
CPU_QUOTA_MIN = 1000
"""Microseconds that the kernel accepts (Documentation/scheduler/sched-bwc.rst)."""
_SYSCTL = re.compile(r"[a-z0-9]([-_a-z0-9]*[a-z0-9])?([./][a-z0-9]([-_a-z0-9]*[a-z0-9])?)+", re.IGNORECASE)
_CPU_LIST = re.compile(r"[0-9]{1,5}(-[0-9]{1,5})?(,[0-9]{1,5}(-[0-9]{1,5})?)*\n?")
_PAGE_SIZE = re.compile(r"[1-9][0-9]{0,9}[KMGT]B")
_UNIFIED = re.compile(r"[a-z0-9_]+(\.[A-Za-z0-9_]+)+")
# What is per IPC and per UTS namespace; all other sysctls below kernel. and fs. are the node's.
_IPC_SYSCTLS = ("kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue.")
_UTS_SYSCTLS = ("kernel.domainname",)


def check_sandbox(config: SandboxConfig, runtime_handler: str, handlers: Sequence[str] = DEFAULT_HANDLERS) -> None:
    """InvalidArgument for the first field of a PodSandboxConfig that cannot be accepted."""
    if runtime_handler not in handlers:
        known = ", ".join(repr(name) for name in handlers if name)
        raise InvalidArgument("runtime_handler", f"{runtime_handler!r} is unknown; known handlers: {known}")
    _check_sandbox_metadata(config)
    _check_hostname(config.hostname)
    if config.log_directory:
        check_path("config.log_directory", config.log_directory)
    _no_nul("config.linux.cgroup_parent", config.cgroup_parent)
    security = "config.linux.security_context"
    _check_ids(security, config.security.run_as_user, config.security.run_as_group)
    _check_groups(f"{security}.supplemental_groups", config.security.supplemental_groups)
    if config.dns is not None:
        _check_dns(config.dns)
    _check_ports(config.port_mappings)
    check_selinux(config.security.selinux_label)
    _check_sandbox_namespaces(config.security.namespaces)
    for name, value in config.sysctls.items():
        _check_sysctl(name, config.security.namespaces)
        _no_nul(f"config.linux.sysctls[{name}]", value)
    check_resources("config.linux.resources", config.resources)
    check_resources("config.linux.overhead", config.overhead)


def check_container(config: ContainerConfig, sandbox: SandboxConfig) -> None:
    """InvalidArgument for the first field of a ContainerConfig that cannot be accepted in that pod."""
    _name("config.metadata.name", config.metadata.name)
    if not config.image:
        raise InvalidArgument("config.image.image", "must not be empty")
    if config.working_dir:
        check_path("config.working_dir", config.working_dir)
    check_arguments("config.command", config.command)
    check_arguments("config.args", config.args)
    for index, (name, value) in enumerate(config.envs):
        _check_env(f"config.envs[{index}]", name, value)
    variables = [f"{name}={value}" for name, value in config.envs]
    _check_total("config.command", [*config.command, *config.args, *variables])
    for index, mount in enumerate(config.mounts):
        _check_mount(f"config.mounts[{index}]", mount)
        _check_mount_mappings(f"config.mounts[{index}]", mount, sandbox.security.namespaces.user)
    for index, device in enumerate(config.devices):
        _check_device(f"config.devices[{index}]", device)
    _check_log_path(config.log_path, sandbox.log_directory)
    check_resources("config.linux.resources", config.resources)
    _check_container_security(config, sandbox)


def _check_sandbox_metadata(config: SandboxConfig) -> None:
    metadata = config.metadata
    for field in ("name", "namespace", "uid"):
        _name(f"config.metadata.{field}", getattr(metadata, field))


def _name(field: str, value: str) -> None:
    if not value:
        raise InvalidArgument(field, "must not be empty")
    if len(value) > NAME_MAX:
        raise InvalidArgument(field, f"is longer than {NAME_MAX} characters")
    if not value.isprintable() or "/" in value:
        raise InvalidArgument(field, f"{value!r} contains a character that is not allowed in a name")


def _check_hostname(hostname: str) -> None:
    if not hostname:
        return
    field = "config.hostname"
    if len(hostname.encode()) > HOSTNAME_MAX:
        raise InvalidArgument(field, f"{hostname!r} is longer than {HOSTNAME_MAX} bytes")
    # The kernel takes any name, RFC 1123's or not. It must be one word of a line in /etc/hosts, too.
    if not hostname.isprintable() or " " in hostname or "#" in hostname:
        raise InvalidArgument(field, f"{hostname!r} has a character that a line of /etc/hosts cannot have")


def check_path(field: str, path: str) -> None:
    """InvalidArgument unless `path` is an absolute path that the kernel can take."""
    if not path.startswith("/") or "\0" in path:
        raise InvalidArgument(field, f"{path!r} is not an absolute path")
    _check_path_length(field, path)


def _check_path_length(field: str, path: str) -> None:
    if len(path.encode()) > PATH_MAX:
        raise InvalidArgument(field, f"is longer than {PATH_MAX} bytes")
    if any(len(part.encode()) > COMPONENT_MAX for part in path.split("/")):
        raise InvalidArgument(field, f"has a component longer than {COMPONENT_MAX} bytes")


def _no_nul(field: str, text: str) -> None:
    # Arguments, environment variables and paths are C strings to the kernel.
    if "\0" in text:
        raise InvalidArgument(field, "contains a NUL character")


def check_arguments(field: str, words: Sequence[str]) -> None:
    """InvalidArgument for arguments that execve(2) cannot take: it names the word, or `field` for all together."""
    for index, word in enumerate(words):
        _check_argument(f"{field}[{index}]", word)
    _check_total(field, words)


def _check_argument(field: str, text: str) -> None:
    _no_nul(field, text)
    if len(text.encode()) > ARGUMENT_MAX:
        raise InvalidArgument(
            field, f"has {len(text.encode())} bytes, the kernel takes {ARGUMENT_MAX}; pass it in a file"
        )


def _check_total(field: str, words: Sequence[str]) -> None:
    if (total := sum(len(word.encode()) + 9 for word in words)) > ARGUMENTS_MAX:
        raise InvalidArgument(
            field, f"has {total} bytes with the environment, the kernel takes {ARGUMENTS_MAX}; pass them in a file"
        )


def _check_dns(dns: DnsConfig) -> None:
    for field in ("servers", "searches", "options"):
        for index, value in enumerate(getattr(dns, field)):
            if not value or value != value.strip() or not value.isprintable() or " " in value:
                raise InvalidArgument(f"config.dns_config.{field}[{index}]", f"{value!r} is not one word")
    for index, server in enumerate(dns.servers):
        if not _is_ip(server):
            raise InvalidArgument(f"config.dns_config.servers[{index}]", f"{server!r} is not an IP address")


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _check_ports(mappings: Iterable[PortMapping]) -> None:
    seen: dict[tuple[str, int, str], int] = {}
    for index, mapping in enumerate(mappings):
        field = f"config.port_mappings[{index}]"
        if not 0 < mapping.container_port < 65536:
            raise InvalidArgument(
                f"{field}.container_port", f"{mapping.container_port} is not a port (1 to 65535)"
            )
        if not 0 <= mapping.host_port < 65536:
            raise InvalidArgument(f"{field}.host_port", f"{mapping.host_port} is not a port (0 to 65535)")
        if mapping.host_ip and not _is_ip(mapping.host_ip):
            raise InvalidArgument(f"{field}.host_ip", f"{mapping.host_ip!r} is not an IP address")
        key = (mapping.protocol.value, mapping.host_port, mapping.host_ip)
        if mapping.host_port and key in seen:
            raise InvalidArgument(f"{field}.host_port", f"{mapping.host_port} is mapped by [{seen[key]}] already")
        seen[key] = index


def _check_sandbox_namespaces(options: NamespaceOptions) -> None:
    field = "config.linux.security_context.namespace_options"
    if options.network not in (NamespaceMode.POD, NamespaceMode.NODE):
        raise InvalidArgument(f"{field}.network", f"{options.network.name} is not a mode for a network namespace")
    if options.ipc not in (NamespaceMode.POD, NamespaceMode.NODE):
        raise InvalidArgument(f"{field}.ipc", f"{options.ipc.name} is not a mode for an IPC namespace")
    if options.user is not None:
        _check_user_namespace(f"{field}.userns_options", options.user, options)


def _check_user_namespace(field: str, user: UserNamespace, options: NamespaceOptions) -> None:
    """CRI UserNamespace: NODE, or POD with one mapping of uids and one of gids that cover root."""
    if user.mode is NamespaceMode.NODE:
        if user.uids or user.gids:
            raise InvalidArgument(f"{field}.uids", "mappings are only for mode POD")
        return
    if user.mode is not NamespaceMode.POD:
        raise InvalidArgument(f"{field}.mode", f"{user.mode.name} is not a mode for a user namespace")
    if options.uses_host:
        raise InvalidArgument(
            f"{field}.mode", "POD cannot be combined with a network, pid or ipc namespace of the node"
        )
    for name in ("uids", "gids"):
        mappings = getattr(user, name)
        if len(mappings) != 1:
            raise InvalidArgument(f"{field}.{name}", f"must be one mapping, not {len(mappings)}")
        if mappings[0].container_id != 0 or mappings[0].length == 0:
            raise InvalidArgument(f"{field}.{name}[0]", "must map container_id 0 and have a length")
        if mappings[0].host_id + mappings[0].length > 1 << 32:
            raise InvalidArgument(f"{field}.{name}[0]", "maps IDs above 4294967295")
    # One mapping is kept for both (Sandbox.mappings); a kubelet sends the same two.
    if user.uids != user.gids:
        raise InvalidArgument(f"{field}.gids", "must be the same mapping as uids")


def _check_sysctl(name: str, options: NamespaceOptions) -> None:
    field = f"config.linux.sysctls[{name}]"
    if not _SYSCTL.fullmatch(name):
        raise InvalidArgument(field, "is not the name of a sysctl")
    dotted = name.replace("/", ".")
    if dotted.startswith("net."):
        if options.network is NamespaceMode.NODE:
            raise InvalidArgument(field, "is not allowed in a pod that uses the node's network")
    elif dotted.startswith(_IPC_SYSCTLS):
        if options.ipc is NamespaceMode.NODE:
            raise InvalidArgument(field, "is not allowed in a pod that uses the node's IPC namespace")
    elif dotted not in _UTS_SYSCTLS:
        raise InvalidArgument(field, "is not a namespaced sysctl that a pod may set")
    elif options.network is NamespaceMode.NODE:
        # A pod in the node's network namespace is in its UTS namespace too: the write would change the node.
        raise InvalidArgument(field, "is not allowed in a pod that uses the node's network")


def check_selinux(label: str) -> None:
    """InvalidArgument for any label: a client must not believe that it is enforced."""
    if label:
        raise InvalidArgument(
            "config.linux.security_context.selinux_options",
            f"{label!r} is not supported: Proxmox VE has AppArmor, not SELinux "
            "(runtime.ignore_selinux_options is false)",
        )


def check_resources(field: str, resources: Resources) -> None:
    """InvalidArgument for the first value of LinuxContainerResources, found at `field`, that is out of range."""
    _check_cpu(field, resources)
    # A kubelet sends what it reads from its pod's cgroup: -1 for no limit, as the OCI runtimes have it.
    if resources.memory_limit < -1:
        raise InvalidArgument(f"{field}.memory_limit_in_bytes", "must not be negative, except -1 for no limit")
    if resources.memory_swap_limit < -1:
        raise InvalidArgument(
            f"{field}.memory_swap_limit_in_bytes", "must not be negative, except -1 for no limit"
        )
    if not -1000 <= resources.oom_score_adj <= 1000:
        raise InvalidArgument(f"{field}.oom_score_adj", f"{resources.oom_score_adj} is not within -1000 to 1000")
    # The swap limit is that of memory and swap together.
    if 0 < resources.memory_swap_limit < resources.memory_limit:
        raise InvalidArgument(f"{field}.memory_swap_limit_in_bytes", "is less than memory_limit_in_bytes")
    for index, entry in enumerate(resources.hugepage_limits):
        if not _PAGE_SIZE.fullmatch(entry.page_size):
            problem = f"{entry.page_size!r} is not a page size such as 2MB"
            raise InvalidArgument(f"{field}.hugepage_limits[{index}].page_size", problem)
    for name, value in resources.unified.items():
        if not _UNIFIED.fullmatch(name):
            raise InvalidArgument(f"{field}.unified[{name}]", "is not the name of a cgroup file")
        _no_nul(f"{field}.unified[{name}]", value)


def _check_cpu(field: str, resources: Resources) -> None:
    for name in ("cpu_period", "cpu_shares"):
        if getattr(resources, name) < 0:
            raise InvalidArgument(f"{field}.{name}", "must not be negative")
    if resources.cpu_shares > CPU_SHARES_MAX:
        raise InvalidArgument(f"{field}.cpu_shares", f"{resources.cpu_shares} is more than {CPU_SHARES_MAX}")
    if resources.cpu_period and resources.cpu_period not in CPU_PERIODS:
        problem = f"{resources.cpu_period} is not within {CPU_PERIODS[0]} to {CPU_PERIODS[-1]} microseconds"
        raise InvalidArgument(f"{field}.cpu_period", problem)
    if 0 < resources.cpu_quota < CPU_QUOTA_MIN:
        problem = f"{resources.cpu_quota} is less than {CPU_QUOTA_MIN} microseconds"
        raise InvalidArgument(f"{field}.cpu_quota", problem)
    for name in ("cpuset_cpus", "cpuset_mems"):
        value = getattr(resources, name)
        if value and not _CPU_LIST.fullmatch(value):
            raise InvalidArgument(f"{field}.{name}", f"{value!r} is not a list such as 0-3,5")


def _check_env(field: str, name: str, value: str) -> None:
    if not name or "=" in name or "\0" in name:
        raise InvalidArgument(f"{field}.key", f"{name!r} is not a name of an environment variable")
    _no_nul(f"{field}.value", value)
    _check_argument(field, f"{name}={value}")


def _check_mount(field: str, mount: Mount) -> None:
    if not mount.container_path:
        raise InvalidArgument(f"{field}.container_path", "must not be empty")
    if ".." in PurePosixPath(mount.container_path).parts:
        raise InvalidArgument(f"{field}.container_path", f"{mount.container_path!r} contains '..'")
    _no_nul(f"{field}.container_path", mount.container_path)
    _check_path_length(f"{field}.container_path", mount.container_path)
    if mount.image:
        _check_image_volume(field, mount)
    else:
        check_path(f"{field}.host_path", mount.host_path)
    if mount.recursive_readonly and not mount.readonly:
        raise InvalidArgument(f"{field}.recursive_read_only", "needs readonly")
    if mount.recursive_readonly and mount.propagation is not Propagation.PRIVATE:
        raise InvalidArgument(f"{field}.recursive_read_only", "needs PROPAGATION_PRIVATE")


def _check_mount_mappings(field: str, mount: Mount, user: UserNamespace | None) -> None:
    """A mount's mappings must be the pod's, which the kubelet repeats for each mount; others are not supported."""
    for name, wanted, pod in (
        ("uidMappings", mount.uid_mappings, user.uids if user else ()),
        ("gidMappings", mount.gid_mappings, user.gids if user else ()),
    ):
        if wanted and wanted != pod:
            raise InvalidArgument(f"{field}.{name}", "is not the mapping of the pod's user namespace")


def _check_image_volume(field: str, mount: Mount) -> None:
    if mount.host_path:
        raise InvalidArgument(f"{field}.host_path", "must be empty if image is set")
    if not mount.readonly:
        raise InvalidArgument(f"{field}.readonly", "must be set: image volumes are read-only")
    if ".." in PurePosixPath(mount.image_sub_path).parts or mount.image_sub_path.startswith("/"):
        raise InvalidArgument(f"{field}.image_sub_path", f"{mount.image_sub_path!r} is outside of the image")
    _no_nul(f"{field}.image_sub_path", mount.image_sub_path)


def _check_device(field: str, device: Device) -> None:
    check_path(f"{field}.host_path", device.host_path)
    if device.container_path:
        check_path(f"{field}.container_path", device.container_path)
    if not device.permissions or set(device.permissions) - set("rwm"):
        raise InvalidArgument(f"{field}.permissions", f"{device.permissions!r} has letters other than r, w and m")


def _check_log_path(log_path: str, log_directory: str) -> None:
    if not log_path:
        return
    if not log_directory:
        raise InvalidArgument("config.log_path", "is set, but the pod has no log_directory")
    if log_path.startswith("/") or ".." in PurePosixPath(log_path).parts:
        raise InvalidArgument("config.log_path", f"{log_path!r} is outside of the pod's log_directory")
    _no_nul("config.log_path", log_path)
    _check_path_length("config.log_path", f"{log_directory}/{log_path}")


def _check_container_security(config: ContainerConfig, sandbox: SandboxConfig) -> None:
    field = "config.linux.security_context"
    security = config.security
    if security.privileged and not sandbox.security.privileged:
        raise InvalidArgument(f"{field}.privileged", "the pod is not privileged")
    _check_ids(field, security.run_as_user, security.run_as_group)
    _check_groups(f"{field}.supplemental_groups", security.supplemental_groups)
    for name in ("masked_paths", "readonly_paths"):
        for index, path in enumerate(getattr(security, name)):
            check_path(f"{field}.{name}[{index}]", path)
    check_selinux(security.selinux_label)
    options, pod = security.namespaces, sandbox.security.namespaces
    if options.pid is NamespaceMode.TARGET and not options.target_id:
        raise InvalidArgument(f"{field}.namespace_options.target_id", "must name a container if pid is TARGET")
    for kind in ("pid", "network", "ipc"):
        if getattr(options, kind) is NamespaceMode.NODE and getattr(pod, kind) is not NamespaceMode.NODE:
            raise InvalidArgument(f"{field}.namespace_options.{kind}", "is NODE, but the pod's is not")


def _check_ids(field: str, user: int | None, group: int | None) -> None:
    _check_id(f"{field}.run_as_user.value", user or 0)
    _check_id(f"{field}.run_as_group.value", group or 0)


def _check_groups(field: str, groups: Sequence[int]) -> None:
    if len(groups) > GROUPS_MAX:
        raise InvalidArgument(field, f"has {len(groups)} groups, the kernel takes {GROUPS_MAX}")
    for index, group in enumerate(groups):
        _check_id(f"{field}[{index}]", group)


def _check_id(field: str, value: int) -> None:
    if not 0 <= value <= ID_MAX:
        raise InvalidArgument(field, f"{value} is not an id")
