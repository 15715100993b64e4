# SPDX-License-Identifier: Apache-2.0
"""What a pod's sandbox says that CNI plugins want to know: capability arguments and CNI_ARGS.

A plugin gets only the arguments of the capabilities that its configuration names (CNI conventions,
"Dynamic Plugin specific fields").
"""

from __future__ import annotations

import re

from pvecri.errors import InvalidArgument
from pvecri.model import PortMapping, SandboxConfig
from pvecri.network.conflist import Plugin, PluginOptions

INGRESS_ANNOTATION = "kubernetes.io/ingress-bandwidth"
EGRESS_ANNOTATION = "kubernetes.io/egress-bandwidth"
IPS_ANNOTATION = "network.pvecri.io/ips"
MAC_ANNOTATION = "network.pvecri.io/mac"
ALIASES_ANNOTATION = "network.pvecri.io/aliases"

BURST_BITS = 0xFFFF_FFFF
"""As large as the bandwidth plugin takes: kubelet's annotations name a rate and no burst."""

_QUANTITY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(?:[eE]([+-]?\d+)|([numkMGTPE]|[KMGTPE]i)?)", re.ASCII)
_SUFFIX = {suffix: 1000.0**power for power, suffix in enumerate("kMGTPE", start=1)}
_SUFFIX |= {f"{suffix}i": 1024.0**power for power, suffix in enumerate("KMGTPE", start=1)}
_SUFFIX |= {"m": 1e-3, "u": 1e-6, "n": 1e-9, "": 1.0}


def capability_arguments(sandbox: SandboxConfig) -> PluginOptions:
    """All capability arguments of the pod, by capability; those that say nothing are left out.

    InvalidArgument names the annotation that cannot be read.
    """
    arguments: PluginOptions = {
        "portMappings": [_port(port) for port in sandbox.port_mappings if port.host_port > 0],
        "bandwidth": _bandwidth(sandbox.annotations),
        "dns": _dns(sandbox),
        "ips": _words(sandbox.annotations.get(IPS_ANNOTATION, "")),
        "mac": sandbox.annotations.get(MAC_ANNOTATION, ""),
        "aliases": _words(sandbox.annotations.get(ALIASES_ANNOTATION, "")),
        "io.kubernetes.cri.pod-annotations": sandbox.annotations,
    }
    return {name: value for name, value in arguments.items() if value}


def runtime_config(plugin: Plugin, arguments: PluginOptions) -> PluginOptions:
    """The part of the arguments that this plugin takes."""
    return {name: value for name, value in arguments.items() if plugin.can(name)}


def cni_args(sandbox_id: str, sandbox: SandboxConfig) -> str:
    """CNI_ARGS: who the pod is, by the names that Kubernetes' runtimes use.

    InvalidArgument when a name holds the separators, or plugins would read arguments into it.
    """
    names = {
        "K8S_POD_NAMESPACE": sandbox.metadata.namespace,
        "K8S_POD_NAME": sandbox.metadata.name,
        "K8S_POD_INFRA_CONTAINER_ID": sandbox_id,
        "K8S_POD_UID": sandbox.metadata.uid,
    }
    for name, value in names.items():
        if ";" in value or "=" in value:
            field = name.removeprefix("K8S_POD_").lower()
            raise InvalidArgument(f"config.metadata.{field}", f"{value!r} must not contain ; or =")
    return ";".join(["IgnoreUnknown=1", *(f"{name}={value}" for name, value in names.items())])


def parse_quantity(text: str) -> int:
    """A Kubernetes quantity such as `10M` or `1.5Gi`, rounded up; ValueError when it is none."""
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a quantity such as 10M")
    number, exponent, suffix = match.groups()
    scale = 10.0 ** int(exponent) if exponent else _SUFFIX[suffix or ""]
    return -int(-float(number) * scale // 1)


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
    """Bits a second, as the annotations and the plugin have them."""
    limits: dict[str, int] = {}
    for direction, annotation in (("ingress", INGRESS_ANNOTATION), ("egress", EGRESS_ANNOTATION)):
        if text := annotations.get(annotation):
            limits[f"{direction}Rate"] = _rate(annotation, text)
            limits[f"{direction}Burst"] = BURST_BITS
    return limits


def _rate(annotation: str, text: str) -> int:
    try:
        return parse_quantity(text)
    except ValueError as error:
        raise InvalidArgument(f"config.annotations[{annotation}]", str(error)) from error


def _dns(sandbox: SandboxConfig) -> dict[str, list[str]]:
    if sandbox.dns is None:
        return {}
    dns = {
        "servers": list(sandbox.dns.servers),
        "searches": list(sandbox.dns.searches),
        "options": list(sandbox.dns.options),
    }
    return {name: values for name, values in dns.items() if values}
