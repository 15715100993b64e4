# SPDX-License-Identifier: Apache-2.0
"""Conflicts between the host ports of two pods. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from pvecri.model import PortMapping


def conflict(wanted: Sequence[PortMapping], taken: Sequence[PortMapping]) -> PortMapping | None:
    """The first of `wanted` that conflicts with one that is `taken`; None if there is none.

    Mappings conflict if protocol and host port are equal and the addresses overlap: an unset address means all of
    both families, 0.0.0.0 and :: all of theirs. A mapping without a host port conflicts with none.
    """
    opened = [each for each in wanted if each.host_port]
    return next((each for each in opened if any(_overlap(each, other) for other in taken)), None)


def describe(mapping: PortMapping) -> str:
    """A host port for messages: `tcp 192.0.2.1:80`, or `tcp port 80` for all addresses."""
    protocol = mapping.protocol.value
    if not mapping.host_ip:
        return f"{protocol} port {mapping.host_port}"
    host = f"[{mapping.host_ip}]" if ":" in mapping.host_ip else mapping.host_ip
    return f"{protocol} {host}:{mapping.host_port}"


def _overlap(one: PortMapping, other: PortMapping) -> bool:
    if (one.protocol, one.host_port) != (other.protocol, other.host_port):
        return False
    if not one.host_ip or not other.host_ip:
        return True
    first, second = ipaddress.ip_address(one.host_ip), ipaddress.ip_address(other.host_ip)
    if first.version != second.version:  # portmap writes rules for each family by itself
        return False
    return first == second or first.is_unspecified or second.is_unspecified
