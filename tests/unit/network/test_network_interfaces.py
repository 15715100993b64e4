# SPDX-License-Identifier: Apache-2.0
"""Which interface of Proxmox's a pod gets by its annotations, and what is refused."""

from __future__ import annotations

import pytest

from pvecri.config.settings import ConfigError, NetworkClass, NetworkConfig
from pvecri.errors import InvalidArgument
from pvecri.model import (
    Firewall,
    FirewallRule,
    NamespaceMode,
    NamespaceOptions,
    PortMapping,
    Protocol,
    ProxmoxInterface,
    SandboxConfig,
    SandboxMetadata,
    SandboxSecurity,
    UserNamespace,
)
from pvecri.network.addresses import commands
from pvecri.network.interfaces import check_classes, interface_of

CONFIG = NetworkConfig(
    classes={
        "lan": NetworkClass(bridge="vmbr0", tag=20, rate=12.5, ip="dhcp"),
        "own": NetworkClass(bridge="vmbr1", pod_addresses=True, firewall=True, pod_firewall=True),
        "walled": NetworkClass(
            bridge="vmbr1",
            ip="dhcp",
            firewall=True,
            firewall_options="policy_in=DROP",
            firewall_rules=("in DROP",),
        ),
    },
    pod_bridges=("vmbr9",),
)


def pod(**annotations: str) -> SandboxConfig:
    """A pod with these annotations, each by the part of its name behind `network.pvecri.io/`."""
    named = {f"network.pvecri.io/{name.replace('_', '-')}": value for name, value in annotations.items()}
    return SandboxConfig(metadata=SandboxMetadata(name="web", namespace="default", uid="42"), annotations=named)


def with_security(config: SandboxConfig, namespaces: NamespaceOptions) -> SandboxConfig:
    security = SandboxSecurity(namespaces=namespaces)
    return SandboxConfig(metadata=config.metadata, annotations=config.annotations, security=security)


@pytest.mark.parametrize(
    ("sandbox", "expected"),
    [
        (pod(), None),
        ({"class": "lan"}, ProxmoxInterface(bridge="vmbr0", tag=20, rate=12.5, ip="dhcp")),
        (
            {"interface": "bridge=vmbr9,tag=7,mtu=1400,ip=10.0.0.5/24,gw=10.0.0.1,hwaddr=02:00:00:aa:00:01"},
            ProxmoxInterface(
                bridge="vmbr9", tag=7, mtu=1400, ip="10.0.0.5/24", gateway="10.0.0.1", mac="02:00:00:AA:00:01"
            ),
        ),
        (
            {"interface": "bridge=vmbr9, ip6=fd00::5/64, gw6=fe80::1"},
            ProxmoxInterface(bridge="vmbr9", ip6="fd00::5/64", gateway6="fe80::1"),
        ),
        (
            {"interface": "bridge=vmbr9,cni=1"},
            ProxmoxInterface(bridge="vmbr9", beside_cni=True),
        ),
        (
            {"class": "own", "interface": "ip=10.0.0.5/24"},
            ProxmoxInterface(bridge="vmbr1", ip="10.0.0.5/24", firewall=Firewall()),
        ),
    ],
)
def test_pod_gets_the_requested_interface(
    sandbox: SandboxConfig | dict[str, str], expected: ProxmoxInterface | None
) -> None:
    asking = pod(**sandbox) if isinstance(sandbox, dict) else sandbox
    assert interface_of(asking, CONFIG) == expected


@pytest.mark.parametrize(
    ("annotations", "blamed", "problem"),
    [
        ({"class": "wan"}, "class", "there is no class 'wan'.*lan, own, walled"),
        ({"class": "lan", "interface": "tag=30"}, "interface", "tag cannot be changed in a network class"),
        ({"class": "lan", "interface": "ip=10.0.0.5/24"}, "interface", r"network\.classes\.lan\.pod_addresses"),
        ({"class": "own"}, "class", "needs an address"),
        ({"interface": "ip=10.0.0.5/24"}, "interface", r"bridge ''; allowed \(network\.pod_bridges\): vmbr9"),
        ({"interface": "bridge=vmbr0,ip=dhcp"}, "interface", r"pods may not choose bridge 'vmbr0'"),
        ({"interface": "bridge=vmbr9,tag=5000,ip=dhcp"}, "interface", "`int` <= 4094 - at `tag`"),
        ({"interface": "bridge=vmbr9,rate=inf,ip=dhcp"}, "interface", "`float` <= 1000000.0 - at `rate`"),
        ({"interface": "bridge=vmbr9,rate=1e400,ip=dhcp"}, "interface", "out of range - at `rate`"),
        ({"interface": "bridge=vmbr9,vlan=5,ip=dhcp"}, "interface", "unknown field `vlan`"),
        ({"interface": "bridge=vmbr9,bridge=vmbr9"}, "interface", "bridge is set twice"),
        ({"interface": "vmbr9"}, "interface", "'vmbr9' is not key=value"),
        ({"interface": "bridge=vmbr9,hwaddr=01:00:00:00:00:01,ip=dhcp"}, "interface", "hwaddr"),
        ({"interface": "bridge=vmbr9,ip=10.0.0.5"}, "interface", "has no prefix length"),
        ({"interface": "bridge=vmbr9,ip=fd00::5/64"}, "interface", "fd00::5"),
        ({"interface": "bridge=vmbr9,ip=10.0.0.5/24,gw=10.0.1.1"}, "interface", "gateway 10.0.1.1 is not"),
        ({"interface": "bridge=vmbr9,ip=dhcp,gw=10.0.1.1"}, "interface", "a gateway needs a static ip"),
        ({"interface": "bridge=vmbr9,ip6=auto"}, "interface", "needs an address"),
        (
            {"interface": "bridge=vmbr9,cni=1,ip=10.0.0.5/24,gw=10.0.0.1"},
            "interface",
            "CNI sets the default route",
        ),
        ({"firewall": "policy_in=DROP"}, "firewall", "needs a Proxmox interface"),
        ({"class": "lan", "firewall": "policy_in=DROP"}, "firewall", "has no firewall"),
        ({"class": "walled", "firewall_rules": "in ACCEPT"}, "firewall-rules", r"classes\.walled\.pod_firewall"),
    ],
)
def test_error_for_a_refused_interface_names_the_annotation(
    annotations: dict[str, str], blamed: str, problem: str
) -> None:
    with pytest.raises(InvalidArgument, match=problem) as error:
        interface_of(pod(**annotations), CONFIG)
    assert error.value.field == f"config.annotations[network.pvecri.io/{blamed}]"


@pytest.mark.parametrize(
    ("namespaces", "problem"),
    [
        (NamespaceOptions(network=NamespaceMode.NODE), "the node's network"),
        (
            NamespaceOptions(user=UserNamespace(mode=NamespaceMode.POD)),
            "ip=dhcp cannot be combined with hostUsers: false",
        ),
    ],
)
def test_dhcp_needs_the_cts_own_network_namespace(namespaces: NamespaceOptions, problem: str) -> None:
    with pytest.raises(InvalidArgument, match=problem):
        interface_of(with_security(pod(**{"class": "lan"}), namespaces), CONFIG)


def test_static_address_does_not_need_the_cts_namespace() -> None:
    namespaces = NamespaceOptions(user=UserNamespace(mode=NamespaceMode.POD))
    asking = with_security(pod(interface="bridge=vmbr9,ip=10.0.0.5/24"), namespaces)
    assert interface_of(asking, CONFIG) == ProxmoxInterface(bridge="vmbr9", ip="10.0.0.5/24")


def test_host_ports_need_cni() -> None:
    mapping = PortMapping(protocol=Protocol.TCP, container_port=80, host_port=80)
    asking = pod(**{"class": "lan"})
    sandbox = SandboxConfig(metadata=asking.metadata, annotations=asking.annotations, port_mappings=(mapping,))
    with pytest.raises(InvalidArgument, match=r"port_mappings\[0\]\.host_port: CNI implements host ports"):
        interface_of(sandbox, CONFIG)


def test_a_pods_firewall_comes_from_its_annotations() -> None:
    rules = "in ACCEPT proto=tcp dport=80,443 source=10.0.0.0/8\n\ngroup web\n"
    asking = pod(**{"class": "own", "interface": "ip=10.0.0.5/24", "firewall": "policy_in=DROP ipfilter=1"})
    annotations = {**asking.annotations, "network.pvecri.io/firewall-rules": rules}

    interface = interface_of(SandboxConfig(metadata=asking.metadata, annotations=annotations), CONFIG)

    assert interface is not None
    first = {"proto": "tcp", "dport": "80,443", "source": "10.0.0.0/8"}
    assert interface.firewall == Firewall(
        options={"policy_in": "DROP", "ipfilter": "1"},
        rules=(
            FirewallRule(direction="in", action="ACCEPT", options=first),
            FirewallRule(direction="group", action="web"),
        ),
    )


def test_a_class_has_its_own_rules() -> None:
    interface = interface_of(pod(**{"class": "walled"}), CONFIG)

    assert interface is not None
    rules = (FirewallRule(direction="in", action="DROP"),)
    assert interface.firewall == Firewall(options={"policy_in": "DROP"}, rules=rules)


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ("forward ACCEPT", "does not begin with one of in, out, group"),
        ("in", "'' is not one of ACCEPT, REJECT, DROP"),
        ("in LOG", "'LOG' is not one of"),
        ("in ACCEPT port=80", "'port=80' is not one of"),
        ("in ACCEPT dport=80 dport=81", "'dport=81' is not one of .*, each once"),
        ("group a/b", "'a/b' is not a name of a security group"),
    ],
)
def test_error_for_an_invalid_rule_names_its_class(rule: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=rf"network\.classes\.lan: '{rule}': {problem}"):
        check_classes(NetworkConfig(classes={"lan": NetworkClass(bridge="vmbr0", firewall_rules=(rule,))}))


def test_address_and_route_commands_are_idempotent() -> None:
    interface = ProxmoxInterface(
        bridge="vmbr0", ip="10.0.0.5/24", gateway="10.0.0.1", ip6="fd00::5/64", gateway6="fe80::1"
    )
    assert commands(interface) == [
        "link set dev eth0 up",
        "address replace 10.0.0.5/24 dev eth0",
        "address replace fd00::5/64 dev eth0 nodad",
        "route replace default via 10.0.0.1 dev eth0",
        "route replace ::/0 via fe80::1 dev eth0",
    ]


def test_automatic_addresses_are_not_set() -> None:
    assert commands(ProxmoxInterface(bridge="vmbr0", ip="dhcp", ip6="auto")) == ["link set dev eth0 up"]
