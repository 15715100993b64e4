# SPDX-License-Identifier: Apache-2.0
"""Pod sandboxes."""

from __future__ import annotations

from enum import Enum

from pvecri.model.base import SandboxId, Value, Vmid
from pvecri.model.front import FrontSandbox
from pvecri.model.namespaces import IdMapping, UserNamespaceDecision
from pvecri.model.resources import Resources
from pvecri.model.security import SandboxSecurity


class SandboxMetadata(Value, frozen=True):
    """CRI PodSandboxMetadata; the four together are unique."""

    name: str
    namespace: str
    uid: str
    attempt: int = 0

    @property
    def pod_name(self) -> str:
        """NAME_NAMESPACE_UID, which the pod's sandboxes have in common: a kubelet counts `attempt` up."""
        return f"{self.name}_{self.namespace}_{self.uid}"


class Protocol(Enum):
    """CRI Protocol."""

    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"


class PortMapping(Value, frozen=True):
    """CRI PortMapping: `host_ip`:`host_port` of the node is forwarded to `container_port` of the pod."""

    protocol: Protocol
    container_port: int
    host_port: int
    host_ip: str = ""


class DnsConfig(Value, frozen=True):
    """CRI DNSConfig, for the pod's resolv.conf."""

    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class FirewallRule(Value, frozen=True):
    """A Proxmox firewall rule: `direction` is in, out or group; `options` have the names of Proxmox's API."""

    direction: str
    action: str
    options: dict[str, str] = {}


class Firewall(Value, frozen=True):
    """A pod's Proxmox firewall: options by the names of Proxmox's API, and rules; the first match decides."""

    options: dict[str, str] = {}
    rules: tuple[FirewallRule, ...] = ()


class ProxmoxInterface(Value, frozen=True):
    """A network interface that Proxmox creates for the pod's CT (`netN`).

    `tag` is the VLAN, 0 for none; `rate` is megabytes per second, 0 for no limit; `mtu` 0 is the bridge's. `ip` is
    empty, `dhcp` or an address with prefix length; `ip6` is empty, `auto` or an address. With `beside_cni` the pod
    is attached to the CNI network too. Without `firewall` Proxmox's is off.
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
        """Its name inside the pod; CNI's interface is eth0."""
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
    """CRI PodSandboxState."""

    READY = "ready"
    NOTREADY = "notready"


class SandboxPhase(Enum):
    """The lifecycle phase of a sandbox. Clients do not see one that is CREATING, nor one that is `removed`.

    After a restart of the daemon, sandboxes in CREATING and REMOVING are removed.
    """

    CREATING = "creating"
    READY = "ready"
    STOPPED = "stopped"
    REMOVING = "removing"


class WarmCt(Value, frozen=True):
    """A running CT that waits for a pod (pods/warm/).

    `fingerprint` identifies the options of its create that cannot be changed while it runs. `digest` is Proxmox's
    of its config once the CT is complete, empty before.
    """

    fingerprint: str
    digest: str = ""


class Sandbox(Value, frozen=True):
    """A pod sandbox in the store.

    `vmid` is 0 without a CT. `ct_made` is set once the CT's init runs, `tagged` once its tags are set, `networked`
    before CNI ADD until after DEL. `ct_volume` is the volume id of the CT's root filesystem, empty if unknown.
    `ct_options` are the options of the CT in Proxmox that are the pod's (proxmox/ct_options.py), as set last;
    `ct_notes` identifies the notes that were written last (pods/sandbox/ct_notes.py).
    `mappings` are those of the pod's user namespace, empty for the node's. `missing_ids` are IDs that a container
    needed and the user namespace lacks: that of the pod's next sandbox has them. `front` is set for the pod of a
    front. `warm` is set until a pod claims the CT; `config` is then a placeholder. `removed` is set once the
    sandbox is removed for its client and its CT is all that is left; the phase is REMOVING then.
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
    ct_volume: str = ""
    ct_options: dict[str, str] = {}
    ct_notes: str = ""
    tagged: bool = False
    front: FrontSandbox | None = None
    warm: WarmCt | None = None
    removed: bool = False

    @property
    def name(self) -> str:
        """NAME_NAMESPACE_UID_ATTEMPT, unique among the sandboxes."""
        return f"{self.config.metadata.pod_name}_{self.config.metadata.attempt}"

    @property
    def state(self) -> SandboxState:
        """The state for CRI clients."""
        return SandboxState.READY if self.phase is SandboxPhase.READY else SandboxState.NOTREADY

    @property
    def root_uid(self) -> int:
        """The host ID of root of the pod's user namespace."""
        # 0 without mappings: in the node's user namespace root is root.
        return next((entry.host_id for entry in self.mappings if entry.container_id == 0), 0)
