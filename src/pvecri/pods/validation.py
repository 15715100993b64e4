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
from pvecri.pods.user_namespaces import DEFAULT_HANDLERS

HOSTNAME_MAX = 64  # the kernel's (uname(2), __NEW_UTS_LEN)
NAME_MAX = 253  # Kubernetes' maximum for names of objects (RFC 1123 subdomains)
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", re.IGNORECASE)
_SYSCTL = re.compile(r"[a-z0-9]([-_a-z0-9]*[a-z0-9])?([./][a-z0-9]([-_a-z0-9]*[a-z0-9])?)+", re.IGNORECASE)
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
        _absolute("config.log_directory", config.log_directory)
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
        _absolute("config.working_dir", config.working_dir)
    for field in ("command", "args"):
        for index, word in enumerate(getattr(config, field)):
            _no_nul(f"config.{field}[{index}]", word)
    for index, (name, value) in enumerate(config.envs):
        _check_env(f"config.envs[{index}]", name, value)
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
    if len(hostname) > HOSTNAME_MAX:
        raise InvalidArgument(field, f"{hostname!r} is longer than {HOSTNAME_MAX} characters")
    if not all(_LABEL.fullmatch(label) and len(label) < HOSTNAME_MAX for label in hostname.split(".")):
        raise InvalidArgument(field, f"{hostname!r} is not a host name (RFC 1123)")


def _absolute(field: str, path: str) -> None:
    if not path.startswith("/") or "\0" in path:
        raise InvalidArgument(field, f"{path!r} is not an absolute path")


def _no_nul(field: str, text: str) -> None:
    # Arguments, environment variables and paths are C strings to the kernel.
    if "\0" in text:
        raise InvalidArgument(field, "contains a NUL character")


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
    for name in ("cpu_period", "cpu_shares"):
        if getattr(resources, name) < 0:
            raise InvalidArgument(f"{field}.{name}", "must not be negative")
    # A kubelet sends what it reads from its pod's cgroup: -1 for no limit, as the OCI runtimes have it.
    if resources.memory_limit < -1:
        raise InvalidArgument(f"{field}.memory_limit_in_bytes", "must not be negative, except -1 for no limit")
    if not -1000 <= resources.oom_score_adj <= 1000:
        raise InvalidArgument(f"{field}.oom_score_adj", f"{resources.oom_score_adj} is not within -1000 to 1000")
    # The swap limit is that of memory and swap together.
    if 0 < resources.memory_swap_limit < resources.memory_limit:
        raise InvalidArgument(f"{field}.memory_swap_limit_in_bytes", "is less than memory_limit_in_bytes")


def _check_env(field: str, name: str, value: str) -> None:
    if not name or "=" in name or "\0" in name:
        raise InvalidArgument(f"{field}.key", f"{name!r} is not a name of an environment variable")
    _no_nul(f"{field}.value", value)


def _check_mount(field: str, mount: Mount) -> None:
    if not mount.container_path:
        raise InvalidArgument(f"{field}.container_path", "must not be empty")
    if ".." in PurePosixPath(mount.container_path).parts:
        raise InvalidArgument(f"{field}.container_path", f"{mount.container_path!r} contains '..'")
    _no_nul(f"{field}.container_path", mount.container_path)
    if mount.image:
        _check_image_volume(field, mount)
    else:
        _absolute(f"{field}.host_path", mount.host_path)
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
    _absolute(f"{field}.host_path", device.host_path)
    if device.container_path:
        _absolute(f"{field}.container_path", device.container_path)
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


def _check_container_security(config: ContainerConfig, sandbox: SandboxConfig) -> None:
    field = "config.linux.security_context"
    security = config.security
    if security.privileged and not sandbox.security.privileged:
        raise InvalidArgument(f"{field}.privileged", "the pod is not privileged")
    for name in ("run_as_user", "run_as_group"):
        _check_id(f"{field}.{name}.value", getattr(security, name) or 0)
    for index, group in enumerate(security.supplemental_groups):
        _check_id(f"{field}.supplemental_groups[{index}]", group)
    check_selinux(security.selinux_label)
    options, pod = security.namespaces, sandbox.security.namespaces
    if options.pid is NamespaceMode.TARGET and not options.target_id:
        raise InvalidArgument(f"{field}.namespace_options.target_id", "must name a container if pid is TARGET")
    for kind in ("pid", "network", "ipc"):
        if getattr(options, kind) is NamespaceMode.NODE and getattr(pod, kind) is not NamespaceMode.NODE:
            raise InvalidArgument(f"{field}.namespace_options.{kind}", "is NODE, but the pod's is not")


def _check_id(field: str, value: int) -> None:
    if not 0 <= value < 1 << 32:
        raise InvalidArgument(field, f"{value} is not an id")
