# SPDX-License-Identifier: Apache-2.0
"""Pod sandboxes."""

from __future__ import annotations

from enum import Enum

from pvecri.model.base import SandboxId, Value, Vmid
from pvecri.model.namespaces import IdMapping, UserNamespaceDecision
from pvecri.model.resources import Resources
from pvecri.model.security import SandboxSecurity


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
    """A pod sandbox in the store. `vmid` is 0 until one is allocated; `ct_made` is whether its CT's
    init has been seen to run, `tagged` whether it has its tags.

    `mappings` are those of the pod's user namespace, empty when that is the node's. `missing_ids` are IDs that a
    container needed and the user namespace lacks: the pod's next sandbox gets one that has them.
    """

    id: SandboxId
    config: SandboxConfig
    created_at: int
    phase: SandboxPhase
    runtime_handler: str = ""
    vmid: Vmid = Vmid(0)
    privileged: bool = False
    user_namespace: UserNamespaceDecision = UserNamespaceDecision()
    missing_ids: tuple[int, ...] = ()
    mappings: tuple[IdMapping, ...] = ()
    ips: tuple[str, ...] = ()
    networked: bool = False
    ct_made: bool = False
    tagged: bool = False

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
