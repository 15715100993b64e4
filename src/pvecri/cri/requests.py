# SPDX-License-Identifier: Apache-2.0
"""Translates CRI messages into the model's values, field by field.

A missing required message and an unknown enum value are InvalidArgument; pods/validation.py checks the values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pvecri.cri.proto import cri_pb2 as pb
from pvecri.errors import InvalidArgument
from pvecri.model import (
    Capabilities,
    ContainerConfig,
    ContainerMetadata,
    ContainerSecurity,
    Device,
    DnsConfig,
    GroupsPolicy,
    HugepageLimit,
    IdMapping,
    Mount,
    NamespaceMode,
    NamespaceOptions,
    PortMapping,
    ProfileKind,
    Propagation,
    Protocol,
    RegistryAuth,
    Resources,
    SandboxConfig,
    SandboxMetadata,
    SandboxSecurity,
    SecurityProfile,
    UserNamespace,
)

V = TypeVar("V")

_MODES = {
    pb.POD: NamespaceMode.POD,
    pb.CONTAINER: NamespaceMode.CONTAINER,
    pb.NODE: NamespaceMode.NODE,
    pb.TARGET: NamespaceMode.TARGET,
}
_POLICIES = {pb.Merge: GroupsPolicy.MERGE, pb.Strict: GroupsPolicy.STRICT}
_PROTOCOLS = {pb.TCP: Protocol.TCP, pb.UDP: Protocol.UDP, pb.SCTP: Protocol.SCTP}
_PROPAGATIONS = {
    pb.PROPAGATION_PRIVATE: Propagation.PRIVATE,
    pb.PROPAGATION_HOST_TO_CONTAINER: Propagation.HOST_TO_CONTAINER,
    pb.PROPAGATION_BIDIRECTIONAL: Propagation.BIDIRECTIONAL,
}
_PROFILES = {
    pb.SecurityProfile.RuntimeDefault: ProfileKind.RUNTIME_DEFAULT,
    pb.SecurityProfile.Unconfined: ProfileKind.UNCONFINED,
    pb.SecurityProfile.Localhost: ProfileKind.LOCALHOST,
}
_SIGNALS = {number: name for name, number in pb.Signal.items()}


def sandbox_config(message: pb.PodSandboxConfig) -> SandboxConfig:
    """A PodSandboxConfig."""
    if not message.HasField("metadata"):
        raise InvalidArgument("config.metadata", "is missing")
    metadata = message.metadata
    return SandboxConfig(
        metadata=SandboxMetadata(
            name=metadata.name, namespace=metadata.namespace, uid=metadata.uid, attempt=metadata.attempt
        ),
        hostname=message.hostname,
        log_directory=message.log_directory,
        dns=_dns(message.dns_config) if message.HasField("dns_config") else None,
        port_mappings=tuple(
            _port_mapping(f"config.port_mappings[{index}]", entry)
            for index, entry in enumerate(message.port_mappings)
        ),
        labels=dict(message.labels),
        annotations=dict(message.annotations),
        # If `linux` is unset, it reads as a message of defaults (proto3).
        cgroup_parent=message.linux.cgroup_parent,
        security=_sandbox_security(message.linux.security_context),
        sysctls=dict(message.linux.sysctls),
        overhead=resources(message.linux.overhead),
        resources=resources(message.linux.resources),
    )


def container_config(message: pb.ContainerConfig) -> ContainerConfig:
    """A ContainerConfig."""
    if not message.HasField("metadata"):
        raise InvalidArgument("config.metadata", "is missing")
    return ContainerConfig(
        metadata=ContainerMetadata(name=message.metadata.name, attempt=message.metadata.attempt),
        image=message.image.image,
        user_specified_image=message.image.user_specified_image,
        command=tuple(message.command),
        args=tuple(message.args),
        working_dir=message.working_dir,
        envs=tuple(
            (entry.key, _text(f"config.envs[{index}].value", entry.value))
            for index, entry in enumerate(message.envs)
        ),
        mounts=tuple(_mount(f"config.mounts[{index}]", entry) for index, entry in enumerate(message.mounts)),
        devices=tuple(
            Device(container_path=entry.container_path, host_path=entry.host_path, permissions=entry.permissions)
            for entry in message.devices
        ),
        cdi_devices=tuple(entry.name for entry in message.CDI_devices),
        labels=dict(message.labels),
        annotations=dict(message.annotations),
        log_path=message.log_path,
        stdin=message.stdin,
        stdin_once=message.stdin_once,
        tty=message.tty,
        resources=resources(message.linux.resources),
        security=_container_security(message.linux.security_context),
        stop_signal=signal_name(message.stop_signal),
    )


def resources(message: pb.LinuxContainerResources) -> Resources:
    """LinuxContainerResources."""
    return Resources(
        cpu_period=message.cpu_period,
        cpu_quota=message.cpu_quota,
        cpu_shares=message.cpu_shares,
        memory_limit=message.memory_limit_in_bytes,
        memory_swap_limit=message.memory_swap_limit_in_bytes,
        oom_score_adj=message.oom_score_adj,
        cpuset_cpus=message.cpuset_cpus,
        cpuset_mems=message.cpuset_mems,
        hugepage_limits=tuple(
            HugepageLimit(page_size=entry.page_size, limit=entry.limit) for entry in message.hugepage_limits
        ),
        unified=dict(message.unified),
    )


def registry_auth(message: pb.AuthConfig) -> RegistryAuth:
    """An AuthConfig."""
    return RegistryAuth(
        username=message.username,
        password=message.password,
        auth=message.auth,
        server_address=message.server_address,
        identity_token=message.identity_token,
        registry_token=message.registry_token,
    )


def signal_name(number: int) -> str:
    """A Signal of the CRI by the kernel's name, such as `SIGTERM` or `SIGRTMIN+3`; empty for the default."""
    name = _known(_SIGNALS, number, "config.stop_signal")
    return "" if name == "RUNTIME_DEFAULT" else name.replace("PLUS", "+").replace("MINUS", "-")


def _text(field: str, value: bytes | str) -> str:
    """An environment variable's value; the CRI has bytes, the OCI spec text."""
    try:
        return value if isinstance(value, str) else value.decode()
    except UnicodeDecodeError as error:
        raise InvalidArgument(field, "is not UTF-8") from error


def _dns(message: pb.DNSConfig) -> DnsConfig:
    return DnsConfig(
        servers=tuple(message.servers), searches=tuple(message.searches), options=tuple(message.options)
    )


def _port_mapping(field: str, message: pb.PortMapping) -> PortMapping:
    return PortMapping(
        protocol=_known(_PROTOCOLS, message.protocol, f"{field}.protocol"),
        container_port=message.container_port,
        host_port=message.host_port,
        host_ip=message.host_ip,
    )


def _mount(field: str, message: pb.Mount) -> Mount:
    return Mount(
        container_path=message.container_path,
        host_path=message.host_path,
        readonly=message.readonly,
        recursive_readonly=message.recursive_read_only,
        selinux_relabel=message.selinux_relabel,
        propagation=_known(_PROPAGATIONS, message.propagation, f"{field}.propagation"),
        uid_mappings=tuple(_id_mapping(entry) for entry in message.uidMappings),
        gid_mappings=tuple(_id_mapping(entry) for entry in message.gidMappings),
        image=message.image.image,
        image_sub_path=message.image_sub_path,
    )


def _id_mapping(message: pb.IDMapping) -> IdMapping:
    return IdMapping(container_id=message.container_id, host_id=message.host_id, length=message.length)


def _namespaces(message: pb.NamespaceOption) -> NamespaceOptions:
    field = "config.linux.security_context.namespace_options"
    user = None
    if message.HasField("userns_options"):
        user = UserNamespace(
            mode=_known(_MODES, message.userns_options.mode, f"{field}.userns_options.mode"),
            uids=tuple(_id_mapping(entry) for entry in message.userns_options.uids),
            gids=tuple(_id_mapping(entry) for entry in message.userns_options.gids),
        )
    return NamespaceOptions(
        network=_known(_MODES, message.network, f"{field}.network"),
        pid=_known(_MODES, message.pid, f"{field}.pid"),
        ipc=_known(_MODES, message.ipc, f"{field}.ipc"),
        target_id=message.target_id,
        user=user,
    )


def _sandbox_security(message: pb.LinuxSandboxSecurityContext) -> SandboxSecurity:
    return SandboxSecurity(
        namespaces=_namespaces(message.namespace_options),
        privileged=message.privileged,
        readonly_rootfs=message.readonly_rootfs,
        # A message around the number, because 0 is root and unset is the image's user.
        run_as_user=message.run_as_user.value if message.HasField("run_as_user") else None,
        run_as_group=message.run_as_group.value if message.HasField("run_as_group") else None,
        supplemental_groups=tuple(message.supplemental_groups),
        groups_policy=_policy(message.supplemental_groups_policy),
        seccomp=_profile(message.seccomp, "seccomp") if message.HasField("seccomp") else None,
        apparmor=_profile(message.apparmor, "apparmor") if message.HasField("apparmor") else None,
        selinux_label=_selinux_label(message.selinux_options),
    )


def _container_security(message: pb.LinuxContainerSecurityContext) -> ContainerSecurity:
    return ContainerSecurity(
        namespaces=_namespaces(message.namespace_options),
        privileged=message.privileged,
        capabilities=Capabilities(
            add=tuple(message.capabilities.add_capabilities),
            drop=tuple(message.capabilities.drop_capabilities),
            ambient=tuple(message.capabilities.add_ambient_capabilities),
        ),
        run_as_user=message.run_as_user.value if message.HasField("run_as_user") else None,
        run_as_group=message.run_as_group.value if message.HasField("run_as_group") else None,
        run_as_username=message.run_as_username,
        supplemental_groups=tuple(message.supplemental_groups),
        groups_policy=_policy(message.supplemental_groups_policy),
        readonly_rootfs=message.readonly_rootfs,
        no_new_privs=message.no_new_privs,
        masked_paths=tuple(message.masked_paths),
        readonly_paths=tuple(message.readonly_paths),
        # The deprecated fields are for clients that do not set the new ones.
        seccomp=_profile(message.seccomp, "seccomp")
        if message.HasField("seccomp")
        else _named_profile(message.seccomp_profile_path),
        apparmor=_profile(message.apparmor, "apparmor")
        if message.HasField("apparmor")
        else _named_profile(message.apparmor_profile),
        selinux_label=_selinux_label(message.selinux_options),
    )


def _selinux_label(message: pb.SELinuxOption) -> str:
    """`user:role:type:level`; empty if all four are."""
    parts = (message.user, message.role, message.type, message.level)
    return ":".join(parts) if any(parts) else ""


_LOCALHOST = "localhost/"
"""Prefix of a reference in the deprecated field; some clients put it into the new field too."""


def _profile(message: pb.SecurityProfile, module: str) -> SecurityProfile:
    """`module` is the name of the field: seccomp or apparmor."""
    kind = _known(_PROFILES, message.profile_type, f"config.linux.security_context.{module}.profile_type")
    return SecurityProfile(kind=kind, localhost_ref=message.localhost_ref.removeprefix(_LOCALHOST))


def _named_profile(name: str) -> SecurityProfile | None:
    """The deprecated field: `runtime/default`, `unconfined` or `localhost/REF`."""
    if not name:
        return None
    if name in ("runtime/default", "docker/default"):
        return SecurityProfile(kind=ProfileKind.RUNTIME_DEFAULT)
    if name == "unconfined":
        return SecurityProfile(kind=ProfileKind.UNCONFINED)
    return SecurityProfile(kind=ProfileKind.LOCALHOST, localhost_ref=name.removeprefix(_LOCALHOST))


def _policy(number: int) -> GroupsPolicy:
    return _known(_POLICIES, number, "config.linux.security_context.supplemental_groups_policy")


def _known(table: Mapping[Any, V], number: int, field: str) -> V:
    """An enum's value. proto3 parses numbers that only a newer cri.proto defines."""
    try:
        return table[number]
    except KeyError:
        raise InvalidArgument(field, f"{number} is not a value that this version knows") from None
