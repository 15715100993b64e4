# SPDX-License-Identifier: Apache-2.0
"""Pods, containers and images as plain values: what the components say to each other.

The vocabulary is the CRI's, without protobuf: `cri/` translates at the border. All values are frozen; a change
makes a new value (`msgspec.structs.replace`). Sizes are bytes and times nanoseconds since the epoch unless the
name says otherwise. The store writes them as JSON, so a field that is added needs a default.
"""

from __future__ import annotations

from enum import Enum
from typing import NewType

import msgspec

SandboxId = NewType("SandboxId", str)
"""64 lower-case hex digits."""
ContainerId = NewType("ContainerId", str)
"""64 lower-case hex digits."""
ImageId = NewType("ImageId", str)
"""`sha256:` and 64 hex digits: the digest of the image's config, as CRI clients know image ids."""
Vmid = NewType("Vmid", int)
"""A Proxmox guest's number, unique in the cluster: 100 to 999999999."""


class Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The base of every value here."""


# -- namespaces and security ---------------------------------------------------------------------------------


class NamespaceMode(Enum):
    """Whose namespace a container uses (CRI NamespaceMode)."""

    POD = "pod"
    CONTAINER = "container"
    NODE = "node"
    TARGET = "target"


class IdMapping(Value, frozen=True):
    """`length` ids from `container_id` inside the user namespace are `host_id`… outside."""

    container_id: int
    host_id: int
    length: int


class UserNamespace(Value, frozen=True):
    """The user namespace that the kubelet asks for: POD with mappings, or NODE for none."""

    mode: NamespaceMode = NamespaceMode.NODE
    uids: tuple[IdMapping, ...] = ()
    gids: tuple[IdMapping, ...] = ()


class NamespaceOptions(Value, frozen=True):
    """CRI NamespaceOption. `target_id` is a container id when `pid` is TARGET."""

    network: NamespaceMode = NamespaceMode.POD
    pid: NamespaceMode = NamespaceMode.POD
    ipc: NamespaceMode = NamespaceMode.POD
    target_id: str = ""
    user: UserNamespace | None = None

    @property
    def uses_host(self) -> bool:
        """Whether any namespace is the node's own."""
        return NamespaceMode.NODE in (self.network, self.pid, self.ipc)


class ProfileKind(Enum):
    """Where a seccomp or AppArmor profile comes from (CRI SecurityProfile.ProfileType)."""

    RUNTIME_DEFAULT = "runtime/default"
    UNCONFINED = "unconfined"
    LOCALHOST = "localhost"


class SecurityProfile(Value, frozen=True):
    """A seccomp or AppArmor profile; `localhost_ref` is its path or name when the kind is LOCALHOST."""

    kind: ProfileKind = ProfileKind.RUNTIME_DEFAULT
    localhost_ref: str = ""


class GroupsPolicy(Enum):
    """Whether the image's /etc/group adds supplemental groups (MERGE) or not (STRICT)."""

    MERGE = "merge"
    STRICT = "strict"


class SandboxSecurity(Value, frozen=True):
    """CRI LinuxSandboxSecurityContext."""

    namespaces: NamespaceOptions = NamespaceOptions()
    privileged: bool = False
    readonly_rootfs: bool = False
    run_as_user: int | None = None
    run_as_group: int | None = None
    supplemental_groups: tuple[int, ...] = ()
    groups_policy: GroupsPolicy = GroupsPolicy.MERGE
    seccomp: SecurityProfile | None = None
    apparmor: SecurityProfile | None = None
    selinux_label: str = ""


class Capabilities(Value, frozen=True):
    """Capability names without `CAP_`, upper case; `ALL` stands for every one."""

    add: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    ambient: tuple[str, ...] = ()


class ContainerSecurity(Value, frozen=True):
    """CRI LinuxContainerSecurityContext."""

    namespaces: NamespaceOptions = NamespaceOptions()
    privileged: bool = False
    capabilities: Capabilities = Capabilities()
    run_as_user: int | None = None
    run_as_group: int | None = None
    run_as_username: str = ""
    supplemental_groups: tuple[int, ...] = ()
    groups_policy: GroupsPolicy = GroupsPolicy.MERGE
    readonly_rootfs: bool = False
    no_new_privs: bool = False
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    seccomp: SecurityProfile | None = None
    apparmor: SecurityProfile | None = None
    selinux_label: str = ""


# -- resources -----------------------------------------------------------------------------------------------


class HugepageLimit(Value, frozen=True):
    """`page_size` as the kernel names it, such as `2MB`; `limit` in bytes."""

    page_size: str
    limit: int


class Resources(Value, frozen=True):
    """CRI LinuxContainerResources; 0 or empty means not said.

    `cpu_period` and `cpu_quota` are microseconds; `cpu_shares` are cgroup v1 shares (2 to 262144). The last four
    are not the CRI's: NRI plugins ask for them. A `pids_limit` of -1 is none.
    """

    cpu_period: int = 0
    cpu_quota: int = 0
    cpu_shares: int = 0
    memory_limit: int = 0
    memory_swap_limit: int = 0
    oom_score_adj: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    hugepage_limits: tuple[HugepageLimit, ...] = ()
    unified: dict[str, str] = {}
    cpu_realtime_runtime: int = 0
    cpu_realtime_period: int = 0
    memory_reservation: int = 0
    pids_limit: int = 0

    def updated(self, changes: Resources) -> Resources:
        """These, with what `changes` says in their place; what it does not say stays."""
        said = {
            name: value
            for name in self.__struct_fields__
            if (value := getattr(changes, name)) != getattr(Resources(), name)
        }
        return msgspec.structs.replace(self, **said)


# -- pod sandboxes -------------------------------------------------------------------------------------------


class SandboxMetadata(Value, frozen=True):
    """What the kubelet calls the pod; the four together are unique among the sandboxes."""

    name: str
    namespace: str
    uid: str
    attempt: int = 0


class Protocol(Enum):
    """The transport protocol of a port mapping."""

    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"


class PortMapping(Value, frozen=True):
    """Traffic to `host_ip`:`host_port` of the node goes to `container_port` of the pod."""

    protocol: Protocol
    container_port: int
    host_port: int
    host_ip: str = ""


class DnsConfig(Value, frozen=True):
    """What the pod's resolv.conf says."""

    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class FirewallRule(Value, frozen=True):
    """A rule of Proxmox's firewall: `direction` in, out or group; `options` by the names of Proxmox's API."""

    direction: str
    action: str
    options: dict[str, str] = {}


class Firewall(Value, frozen=True):
    """Proxmox's firewall for a pod: options by the names of its API, and rules, of which the first match holds."""

    options: dict[str, str] = {}
    rules: tuple[FirewallRule, ...] = ()


class ProxmoxInterface(Value, frozen=True):
    """A network interface that Proxmox makes for the pod's CT (`netN`).

    `tag` 0 is no VLAN; `rate` is megabytes a second, 0 for no limit; `mtu` 0 is the bridge's. `ip` is empty,
    `dhcp` or an address with prefix length; `ip6` empty, `auto` or one. `beside_cni` says that the pod is on the
    CNI network too. A `firewall` of None leaves Proxmox's off.
    """

    bridge: str
    tag: int = 0
    rate: float = 0.0
    mtu: int = 0
    mac: str = ""
    ip: str = ""
    gateway: str = ""
    ip6: str = ""
    gateway6: str = ""
    beside_cni: bool = False
    firewall: Firewall | None = None

    @property
    def name(self) -> str:
        """Its name inside the pod: the first interface's, or the second's beside CNI's."""
        return "eth1" if self.beside_cni else "eth0"


class SandboxConfig(Value, frozen=True):
    """CRI PodSandboxConfig, validated."""

    metadata: SandboxMetadata
    hostname: str = ""
    log_directory: str = ""
    dns: DnsConfig | None = None
    port_mappings: tuple[PortMapping, ...] = ()
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    cgroup_parent: str = ""
    security: SandboxSecurity = SandboxSecurity()
    sysctls: dict[str, str] = {}
    overhead: Resources = Resources()
    resources: Resources = Resources()


class SandboxState(Enum):
    """What clients see; a sandbox being made or removed is not seen at all."""

    READY = "ready"
    NOTREADY = "notready"


class SandboxPhase(Enum):
    """Where a sandbox is in its life. Only READY and STOPPED ones are shown to clients.

    CREATING and REMOVING are intents: a daemon that finds one at its start finishes the undoing.
    """

    CREATING = "creating"
    READY = "ready"
    STOPPED = "stopped"
    REMOVING = "removing"


class Sandbox(Value, frozen=True):
    """A pod sandbox in the store. `vmid` is 0 until one is allocated; `init` is the CT's first process.

    `mappings` are those of the CT's user namespace, empty when the CT is privileged.
    """

    id: SandboxId
    config: SandboxConfig
    created_at: int
    phase: SandboxPhase
    runtime_handler: str = ""
    vmid: Vmid = Vmid(0)
    privileged: bool = False
    mappings: tuple[IdMapping, ...] = ()
    ips: tuple[str, ...] = ()
    networked: bool = False

    @property
    def name(self) -> str:
        """The name that no two sandboxes share."""
        metadata = self.config.metadata
        return f"{metadata.name}_{metadata.namespace}_{metadata.uid}_{metadata.attempt}"

    @property
    def state(self) -> SandboxState:
        """What clients see."""
        return SandboxState.READY if self.phase is SandboxPhase.READY else SandboxState.NOTREADY

    @property
    def root_uid(self) -> int:
        """The host's uid of root inside the CT."""
        return next((entry.host_id for entry in self.mappings if entry.container_id == 0), 0)


# -- containers ----------------------------------------------------------------------------------------------


class ContainerMetadata(Value, frozen=True):
    """The container's name within its pod, and which try this is."""

    name: str
    attempt: int = 0


class Propagation(Enum):
    """Mount propagation, by the names that mount(8) and the OCI spec give it."""

    PRIVATE = "rprivate"
    HOST_TO_CONTAINER = "rslave"
    BIDIRECTIONAL = "rshared"


class Mount(Value, frozen=True):
    """A directory or file of the node, or an image's content, at `container_path`.

    `image_ref` is the id of the image that `image` meant when the container was made.
    """

    container_path: str
    host_path: str = ""
    readonly: bool = False
    recursive_readonly: bool = False
    selinux_relabel: bool = False
    propagation: Propagation = Propagation.PRIVATE
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
    image: str = ""
    image_sub_path: str = ""
    image_ref: str = ""


class Device(Value, frozen=True):
    """A device node of the node; `permissions` of the letters r, w and m."""

    container_path: str
    host_path: str
    permissions: str


class ContainerConfig(Value, frozen=True):
    """CRI ContainerConfig, validated. `image` is the reference as the client gave it."""

    metadata: ContainerMetadata
    image: str
    user_specified_image: str = ""
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    working_dir: str = ""
    envs: tuple[tuple[str, str], ...] = ()
    mounts: tuple[Mount, ...] = ()
    devices: tuple[Device, ...] = ()
    cdi_devices: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    log_path: str = ""
    stdin: bool = False
    stdin_once: bool = False
    tty: bool = False
    resources: Resources = Resources()
    security: ContainerSecurity = ContainerSecurity()
    stop_signal: str = ""


class ContainerState(Enum):
    """CRI ContainerState."""

    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"
    UNKNOWN = "unknown"


class ContainerUser(Value, frozen=True):
    """Who the container's first process runs as, inside the container."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()


class Container(Value, frozen=True):
    """A container in the store. Times are 0 until they are; `log_path` is absolute, or empty for no log.

    `image_reference` is the tag or digest that the image is known by; `user_specified_image` stands in `config`.
    `added_sources` are what the bind mounts show that NRI plugins added to a container in a user namespace.
    """

    id: ContainerId
    sandbox_id: SandboxId
    config: ContainerConfig
    image_id: ImageId
    image_reference: str
    created_at: int
    state: ContainerState = ContainerState.CREATED
    started_at: int = 0
    finished_at: int = 0
    exit_code: int = 0
    reason: str = ""
    message: str = ""
    log_path: str = ""
    stop_signal: str = ""
    user: ContainerUser = ContainerUser()
    added_sources: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name that no two containers of one sandbox share."""
        return f"{self.config.metadata.name}_{self.config.metadata.attempt}"


# -- images --------------------------------------------------------------------------------------------------


class ImageConfig(Value, frozen=True):
    """What an image says of how to run it (OCI image-spec, config.md, the `config` object)."""

    user: str = ""
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = ""
    stop_signal: str = ""
    volumes: tuple[str, ...] = ()
    labels: dict[str, str] = {}


class Image(Value, frozen=True):
    """An image in the store.

    `tags` and `digests` are full references (`docker.io/library/busybox:1.36`,
    `docker.io/library/busybox@sha256:…`); `diff_ids` are its layers' content digests, lowest first;
    `size` is the bytes of the compressed layers and the config, as CRI clients expect it.
    """

    id: ImageId
    tags: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    size: int = 0
    diff_ids: tuple[str, ...] = ()
    config: ImageConfig = ImageConfig()
    pinned: bool = False


class RegistryAuth(Value, frozen=True):
    """Credentials for one pull (CRI AuthConfig); `repr` shows none of them."""

    username: str = ""
    password: str = ""
    auth: str = ""
    server_address: str = ""
    identity_token: str = ""
    registry_token: str = ""

    def __repr__(self) -> str:
        return f"RegistryAuth(username={self.username!r}, …)"


class FilesystemUsage(Value, frozen=True):
    """What a store uses of the filesystem that `mountpoint` lies on."""

    mountpoint: str
    used_bytes: int
    inodes_used: int
    timestamp: int
