# SPDX-License-Identifier: Apache-2.0
"""Results of CNI ADD (CNI specification, section 5). Versions 0.3.0 to 1.1 agree in all fields used here."""

from __future__ import annotations

import ipaddress

import msgspec


class CniIp(msgspec.Struct, frozen=True):
    """One of `ips`: `address` in CIDR form; `interface` is an index into the result's interfaces."""

    address: str
    gateway: str = ""
    interface: int | None = None


class CniInterface(msgspec.Struct, frozen=True):
    """One of `interfaces`; `sandbox` is empty for those on the node's side."""

    name: str
    mac: str = ""
    sandbox: str = ""


class CniResult(msgspec.Struct, frozen=True):
    """A success result, without `routes` and `dns`: plugins apply those themselves."""

    interfaces: list[CniInterface] = []
    ips: list[CniIp] = []


class PodInterface(msgspec.Struct, frozen=True, kw_only=True):
    """An interface in the pod; addresses with their prefix length."""

    name: str
    mac: str = ""
    addresses: tuple[str, ...] = ()


class PodNetwork(msgspec.Struct, frozen=True, kw_only=True):
    """A pod's attachment. `ips` have no prefix length, the primary one is first; `result_json` is CNI's result."""

    ips: tuple[str, ...] = ()
    interfaces: tuple[PodInterface, ...] = ()
    result_json: str = ""


def pod_network(result_json: bytes) -> PodNetwork:
    """Parse a result; ValueError.

    An address is the pod's if its interface is inside the pod or unset, as some plugins leave it.
    """
    try:
        result = msgspec.json.decode(result_json, type=CniResult)
    except msgspec.DecodeError as error:
        raise ValueError(f"not a CNI result: {error}") from error
    own = [ip for ip in result.ips if _is_inside(ip, result.interfaces)]
    return PodNetwork(
        ips=tuple(str(ipaddress.ip_interface(ip.address).ip) for ip in own),
        interfaces=tuple(
            _interface(result, index) for index, each in enumerate(result.interfaces) if each.sandbox
        ),
        result_json=result_json.decode(),
    )


def _is_inside(ip: CniIp, interfaces: list[CniInterface]) -> bool:
    if ip.interface is None or not 0 <= ip.interface < len(interfaces):
        return True
    return bool(interfaces[ip.interface].sandbox)


def _interface(result: CniResult, index: int) -> PodInterface:
    interface = result.interfaces[index]
    addresses = tuple(ip.address for ip in result.ips if ip.interface == index)
    return PodInterface(name=interface.name, mac=interface.mac, addresses=addresses)
