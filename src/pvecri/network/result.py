# SPDX-License-Identifier: Apache-2.0
"""Results of CNI ADD (CNI specification, section 5). Versions 0.3.0 to 1.1 agree in all fields used here."""

from __future__ import annotations

import ipaddress

import msgspec


class CniIp(msgspec.Struct, frozen=True):
    """One of `ips`: `address` in CIDR form; `interface` is an index into the result's interfaces."""

    address: str
    interface: int | None = None


class CniInterface(msgspec.Struct, frozen=True):
    """One of `interfaces`; `sandbox` is empty for those on the node's side."""

    sandbox: str = ""


class CniResult(msgspec.Struct, frozen=True):
    """A success result, with what is used of it: routes and DNS are applied by the plugins themselves."""

    interfaces: list[CniInterface] = []
    ips: list[CniIp] = []


class PodNetwork(msgspec.Struct, frozen=True, kw_only=True):
    """A pod's attachment. `ips` have no prefix length, the primary one is first."""

    ips: tuple[str, ...] = ()


def pod_network(result_json: bytes) -> PodNetwork:
    """Parse a result; ValueError.

    An address is the pod's if its interface is inside the pod or unset, as some plugins leave it.
    """
    try:
        result = msgspec.json.decode(result_json, type=CniResult)
    except msgspec.DecodeError as error:
        raise ValueError(f"not a CNI result: {error}") from error
    own = [ip for ip in result.ips if _is_inside(ip, result.interfaces)]
    return PodNetwork(ips=tuple(str(ipaddress.ip_interface(ip.address).ip) for ip in own))


def _is_inside(ip: CniIp, interfaces: list[CniInterface]) -> bool:
    # Some plugins leave the index out; one out of range is as good as none.
    if ip.interface is None or not 0 <= ip.interface < len(interfaces):
        return True
    return bool(interfaces[ip.interface].sandbox)
