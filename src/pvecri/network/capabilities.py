# SPDX-License-Identifier: Apache-2.0
"""Capability arguments and CNI_ARGS, from a pod's sandbox configuration.

A plugin gets only the arguments of the capabilities that its configuration enables (CNI conventions,
"Dynamic Plugin specific fields").
"""

from __future__ import annotations

import ipaddress
import math
import re
from decimal import Decimal

from pvecri.errors import InvalidArgument
from pvecri.model import PortMapping, SandboxConfig, SandboxMetadata
from pvecri.network.conflist import Plugin, PluginOptions

INGRESS_ANNOTATION = "kubernetes.io/ingress-bandwidth"
EGRESS_ANNOTATION = "kubernetes.io/egress-bandwidth"
IPS_ANNOTATION = "network.pvecri.io/ips"
MAC_ANNOTATION = "network.pvecri.io/mac"
ALIASES_ANNOTATION = "network.pvecri.io/aliases"

BURST_BITS = 0xFFFF_FFFF
"""The bandwidth plugin's maximum: Kubernetes' annotations have a rate and no burst."""

RATE_MIN, RATE_MAX = 1000, 10**15
"""Bits a second that are taken, 1k to 1P: Kubernetes' own limits (pkg/util/bandwidth)."""

MOST_SHOWN = 40
"""Characters of an annotation that an error quotes."""

# Of an exponent three digits: Decimal takes no more than 10**18 of them, and RATE_MAX far fewer.
_QUANTITY = re.compile(
    r"(\d{1,64}(?:\.\d{0,64})?|\.\d{1,64})(?:[eE]([+-]?\d{1,3})|([numkMGTPE]|[KMGTPE]i)?)", re.ASCII
)
_SUFFIX = {suffix: Decimal(1000) ** power for power, suffix in enumerate("kMGTPE", start=1)}
_SUFFIX |= {f"{suffix}i": Decimal(1024) ** power for power, suffix in enumerate("KMGTPE", start=1)}
_SUFFIX |= {"m": Decimal("1e-3"), "u": Decimal("1e-6"), "n": Decimal("1e-9"), "": Decimal(1)}

_MAC = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}", re.ASCII)


def capability_arguments(sandbox: SandboxConfig) -> PluginOptions:
    """The pod's capability arguments, by capability; empty ones are left out.

    InvalidArgument names the annotation that cannot be read. So this is for a pod of which nothing has been made.
    """
    arguments: PluginOptions = {
        "bandwidth": _bandwidth(sandbox.annotations),
        "ips": [_address(word) for word in _words(sandbox.annotations.get(IPS_ANNOTATION, ""))],
        "mac": _mac(sandbox.annotations.get(MAC_ANNOTATION, "")),
        "aliases": _words(sandbox.annotations.get(ALIASES_ANNOTATION, "")),
    }
    return checked_arguments(sandbox) | {name: value for name, value in arguments.items() if value}


def checked_arguments(sandbox: SandboxConfig) -> PluginOptions:
    """The capability arguments that are not parsed from annotations."""
    arguments: PluginOptions = {
        # The kubelet sends every containerPort, most of them without a hostPort.
        "portMappings": [_port(port) for port in sandbox.port_mappings if port.host_port > 0],
        "dns": _dns(sandbox),
        "io.kubernetes.cri.pod-annotations": sandbox.annotations,
    }
    return {name: value for name, value in arguments.items() if value}


def runtime_config(plugin: Plugin, arguments: PluginOptions) -> PluginOptions:
    """The arguments that this plugin accepts."""
    return {name: value for name, value in arguments.items() if plugin.can(name)}


def check_names(metadata: SandboxMetadata) -> None:
    """InvalidArgument if a name contains a separator of CNI_ARGS, by which it could add arguments."""
    for field in ("namespace", "name", "uid"):
        value = getattr(metadata, field)
        if not _is_plain(value):
            raise InvalidArgument(f"config.metadata.{field}", f"{value!r} must not contain ; or =")


def cni_args(sandbox_id: str, metadata: SandboxMetadata) -> str:
    """CNI_ARGS, with the names that CRI-O and containerd use.

    A value that `check_names` would refuse is left out.
    """
    names = {
        "K8S_POD_NAMESPACE": metadata.namespace,
        "K8S_POD_NAME": metadata.name,
        "K8S_POD_INFRA_CONTAINER_ID": sandbox_id,
        "K8S_POD_UID": metadata.uid,
    }
    # Without IgnoreUnknown, plugins refuse the keys that they do not know.
    return ";".join(["IgnoreUnknown=1", *(f"{name}={value}" for name, value in names.items() if _is_plain(value))])


def _is_plain(name: str) -> bool:
    return ";" not in name and "=" not in name


def parse_quantity(text: str) -> Decimal:
    """Parse a Kubernetes quantity such as `10M`, `1.5Gi` or `1e6`, exactly; ValueError.

    It may be of any size: compare it before converting it to int.
    """
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        shown = text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"
        raise ValueError(f"{shown!r} is not a quantity such as 10M")
    number, exponent, suffix = match.groups()
    scale = Decimal(f"1e{exponent}") if exponent else _SUFFIX[suffix or ""]
    return Decimal(number) * scale


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _port(port: PortMapping) -> dict[str, object]:
    mapping: dict[str, object] = {
        "hostPort": port.host_port,
        "containerPort": port.container_port,
        "protocol": port.protocol.value,
    }
    return mapping | ({"hostIP": port.host_ip} if port.host_ip else {})


def _bandwidth(annotations: dict[str, str]) -> dict[str, int]:
    """Rates and bursts in bits per second, the unit of both the annotations and the plugin."""
    limits: dict[str, int] = {}
    for direction, annotation in (("ingress", INGRESS_ANNOTATION), ("egress", EGRESS_ANNOTATION)):
        if text := annotations.get(annotation):
            limits[f"{direction}Rate"] = _rate(annotation, text)
            limits[f"{direction}Burst"] = BURST_BITS
    return limits


def _rate(annotation: str, text: str) -> int:
    """The rate, rounded up as Kubernetes rounds."""
    try:
        rate = parse_quantity(text)
    except ValueError as error:
        raise _wrong(annotation, str(error)) from error
    if not RATE_MIN <= rate <= RATE_MAX:
        raise _wrong(annotation, f"{text.strip()!r} is not between 1k and 1P bits a second")
    return math.ceil(rate)


def _address(text: str) -> str:
    """An address, with or without its prefix length."""
    try:
        ipaddress.ip_interface(text)
    except ValueError as error:
        raise _wrong(IPS_ANNOTATION, f"{text[:MOST_SHOWN]!r} is not an IP address") from error
    return text


def _mac(text: str) -> str:
    if text and not _MAC.fullmatch(text):
        raise _wrong(MAC_ANNOTATION, f"{text[:MOST_SHOWN]!r} is not a MAC address such as 02:00:00:00:00:01")
    return text


def _wrong(annotation: str, problem: str) -> InvalidArgument:
    return InvalidArgument(f"config.annotations[{annotation}]", problem)


def _dns(sandbox: SandboxConfig) -> dict[str, list[str]]:
    if sandbox.dns is None:
        return {}
    dns = {
        "servers": list(sandbox.dns.servers),
        "searches": list(sandbox.dns.searches),
        "options": list(sandbox.dns.options),
    }
    return {name: values for name, values in dns.items() if values}
