# SPDX-License-Identifier: Apache-2.0
"""The Proxmox interface that a pod requests by its annotations and the configured classes. Pure.

The keys are those of Proxmox's `netN`. The node's administrator decides what pods may choose (decision 0061): a
class (network.classes), or a bridge that is open to all pods (network.pod_bridges).
"""

from __future__ import annotations

import ipaddress
from typing import Annotated

import msgspec

from pvecri.config.settings import ConfigError, NetworkClass, NetworkConfig
from pvecri.errors import InvalidArgument
from pvecri.model import Firewall, NamespaceMode, ProxmoxInterface, SandboxConfig
from pvecri.network import firewall

CLASS_ANNOTATION = "network.pvecri.io/class"
INTERFACE_ANNOTATION = "network.pvecri.io/interface"
FIREWALL_ANNOTATION = "network.pvecri.io/firewall"
RULES_ANNOTATION = "network.pvecri.io/firewall-rules"

ADDRESS_KEYS = frozenset({"ip", "gw", "ip6", "gw6", "hwaddr"})
"""What a pod may add to a class that has `pod_addresses`."""


RATE_MAX = 1e6
"""Megabytes per second: more than any interface has; a finite bound, because TOML and floats have infinity."""


class _Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The keys of INTERFACE_ANNOTATION; see model.ProxmoxInterface for the units."""

    bridge: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.-]{1,15}$")] = ""
    tag: Annotated[int, msgspec.Meta(ge=0, le=4094)] = 0
    rate: Annotated[float, msgspec.Meta(ge=0, le=RATE_MAX)] = 0.0
    mtu: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    firewall: bool = False
    # The second digit is even: Proxmox accepts unicast addresses only (format mac-addr).
    hwaddr: Annotated[str, msgspec.Meta(pattern=r"^([0-9A-Fa-f][02468ACEace](:[0-9A-Fa-f]{2}){5})?$")] = ""
    ip: str = ""
    gw: str = ""
    ip6: str = ""
    gw6: str = ""
    cni: bool = False


def requests_interface(sandbox: SandboxConfig) -> bool:
    """Whether a pod requests a Proxmox interface, valid or not in the current configuration."""
    return CLASS_ANNOTATION in sandbox.annotations or INTERFACE_ANNOTATION in sandbox.annotations


def interface_of(sandbox: SandboxConfig, config: NetworkConfig) -> ProxmoxInterface | None:
    """The interface that Proxmox creates for a pod; None if the pod requests none.

    InvalidArgument names the annotation, and the setting that would allow it.
    """
    if not requests_interface(sandbox):
        for name in (FIREWALL_ANNOTATION, RULES_ANNOTATION):
            if name in sandbox.annotations:
                raise _invalid(name, f"needs a Proxmox interface: {CLASS_ANNOTATION} or {INTERFACE_ANNOTATION}")
        return None
    network_class = _class(sandbox, config)
    options = _options(sandbox, config, network_class)
    annotation = INTERFACE_ANNOTATION if INTERFACE_ANNOTATION in sandbox.annotations else CLASS_ANNOTATION
    _check_pod(sandbox, options, annotation)
    _check_addresses(options, annotation)
    return ProxmoxInterface(
        bridge=options.bridge,
        tag=options.tag,
        rate=options.rate,
        mtu=options.mtu,
        mac=options.hwaddr.upper(),
        ip=options.ip,
        gateway=options.gw,
        ip6=options.ip6,
        gateway6=options.gw6,
        beside_cni=options.cni,
        firewall=_firewall(sandbox, options, network_class),
    )


def check_classes(config: NetworkConfig) -> None:
    """ConfigError for invalid firewall options or rules of a class."""
    for name, each in config.classes.items():
        try:
            firewall.parse_options(each.firewall_options)
            firewall.parse_rules(each.firewall_rules)
        except ValueError as error:
            raise ConfigError(f"network.classes.{name}: {error}") from error


def _invalid(annotation: str, problem: str) -> InvalidArgument:
    return InvalidArgument(f"config.annotations[{annotation}]", problem)


def _class(sandbox: SandboxConfig, config: NetworkConfig) -> NetworkClass | None:
    name = sandbox.annotations.get(CLASS_ANNOTATION)
    if name is None:
        return None
    if name not in config.classes:
        known = ", ".join(sorted(config.classes)) or "none"
        raise _invalid(CLASS_ANNOTATION, f"there is no class {name!r}; configured (network.classes): {known}")
    return config.classes[name]


def _options(sandbox: SandboxConfig, config: NetworkConfig, network_class: NetworkClass | None) -> _Options:
    """The class's options, with those that the pod adds and the administrator allows."""
    given = _pairs(sandbox.annotations.get(INTERFACE_ANNOTATION, ""))
    try:
        wanted = msgspec.convert(given, _Options, strict=False)
    except msgspec.ValidationError as error:
        raise _invalid(INTERFACE_ANNOTATION, str(error).replace("`$.", "`").replace("Object", "it")) from error
    if network_class is None:
        if wanted.bridge not in config.pod_bridges:
            allowed = ", ".join(config.pod_bridges) or "none"
            problem = f"pods may not choose bridge {wanted.bridge!r}; allowed (network.pod_bridges): {allowed}"
            raise _invalid(INTERFACE_ANNOTATION, problem)
        return wanted
    if fixed := sorted(set(given) - ADDRESS_KEYS):
        raise _invalid(INTERFACE_ANNOTATION, f"{', '.join(fixed)} cannot be changed in a network class")
    if given and not network_class.pod_addresses:
        name = sandbox.annotations[CLASS_ANNOTATION]
        problem = f"pods may not choose addresses in this class (network.classes.{name}.pod_addresses)"
        raise _invalid(INTERFACE_ANNOTATION, problem)
    chosen = {key: getattr(wanted, key) for key in given}
    return msgspec.structs.replace(_class_options(network_class), **chosen)


def _class_options(network_class: NetworkClass) -> _Options:
    shared = [name for name in _Options.__struct_fields__ if name in network_class.__struct_fields__]
    return _Options(**{name: getattr(network_class, name) for name in shared})


def _pairs(text: str) -> dict[str, str]:
    """Parse `key=value,…`, Proxmox's syntax of `netN`."""
    pairs: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = part.partition("=")
        if not equals or key in pairs:
            problem = f"{key} is set twice" if equals else f"{part!r} is not key=value"
            raise _invalid(INTERFACE_ANNOTATION, problem)
        pairs[key] = value
    return pairs


def _check_pod(sandbox: SandboxConfig, options: _Options, annotation: str) -> None:
    """InvalidArgument if such a pod cannot have the interface."""
    namespaces = sandbox.security.namespaces
    if namespaces.network is NamespaceMode.NODE:
        raise _invalid(annotation, "cannot be combined with the node's network")
    if options.ip == "dhcp" and namespaces.user is not None and namespaces.user.mode is NamespaceMode.POD:
        # Proxmox's DHCP client runs in the CT's network namespace, which is not the pod's.
        raise _invalid(annotation, "ip=dhcp cannot be combined with hostUsers: false")
    for index, mapping in enumerate(sandbox.port_mappings):
        if mapping.host_port and not options.cni:
            problem = f"CNI implements host ports, and {annotation} replaces it; use the pod's own address"
            raise InvalidArgument(f"config.port_mappings[{index}].host_port", problem)


def _check_addresses(options: _Options, annotation: str) -> None:
    try:
        _check_family("ip", options.ip, options.gw, ipaddress.IPv4Interface, "dhcp")
        _check_family("ip6", options.ip6, options.gw6, ipaddress.IPv6Interface, "auto")
    except ValueError as error:
        raise _invalid(annotation, str(error)) from error
    if options.cni and (options.gw or options.gw6):
        raise _invalid(annotation, "gw and gw6 cannot be combined with cni: CNI sets the default route")
    if not options.cni and not options.ip and options.ip6 in ("", "auto"):
        # PodSandboxStatus needs an address, and pvecri does not wait for one by router advertisement.
        raise _invalid(
            annotation, "without CNI an interface needs an address: ip=ADDRESS/PREFIX, ip=dhcp or ip6=…"
        )


def _check_family(
    key: str,
    address: str,
    gateway: str,
    kind: type[ipaddress.IPv4Interface | ipaddress.IPv6Interface],
    automatic: str,
) -> None:
    """ValueError for an address or a gateway that cannot be set."""
    if address in ("", automatic):
        if gateway:
            raise ValueError(f"a gateway needs a static {key}")
        return
    if "/" not in address:
        raise ValueError(f"{key}: {address!r} has no prefix length")
    interface = kind(address)
    if not gateway:
        return
    via = ipaddress.ip_address(gateway)
    # IPv6 routers announce themselves by link-local addresses, which are in no prefix of the interface.
    reachable = via in interface.network or (via.version == 6 and via.is_link_local)
    if not reachable or via == interface.ip:
        raise ValueError(f"gateway {gateway} is not another address of {interface.network}")


def _firewall(sandbox: SandboxConfig, options: _Options, network_class: NetworkClass | None) -> Firewall | None:
    """The class's rules come first (the first match decides) and its options take precedence over the pod's."""
    given = [name for name in (FIREWALL_ANNOTATION, RULES_ANNOTATION) if name in sandbox.annotations]
    if given and not options.firewall:
        raise _invalid(given[0], "the interface has no firewall (firewall=1)")
    if given and network_class is not None and not network_class.pod_firewall:
        name = sandbox.annotations[CLASS_ANNOTATION]
        raise _invalid(given[0], f"pods may not set rules in this class (network.classes.{name}.pod_firewall)")
    if not options.firewall:
        return None
    chosen = _read_firewall(sandbox)
    if network_class is None:
        return chosen
    return Firewall(
        options=chosen.options | firewall.parse_options(network_class.firewall_options),
        rules=firewall.parse_rules(network_class.firewall_rules) + chosen.rules,
    )


def _read_firewall(sandbox: SandboxConfig) -> Firewall:
    annotation = FIREWALL_ANNOTATION
    try:
        options = firewall.parse_options(sandbox.annotations.get(FIREWALL_ANNOTATION, ""))
        annotation = RULES_ANNOTATION
        rules = firewall.parse_rules(sandbox.annotations.get(RULES_ANNOTATION, "").splitlines())
    except ValueError as error:
        raise _invalid(annotation, str(error)) from error
    return Firewall(options=options, rules=rules)
