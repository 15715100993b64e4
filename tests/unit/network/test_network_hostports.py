# SPDX-License-Identifier: Apache-2.0
"""Which host ports are in each other's way."""

from __future__ import annotations

import pytest

from pvecri.model import PortMapping, Protocol
from pvecri.network.hostports import conflict, describe


def port(host_ip: str = "", host_port: int = 80, protocol: Protocol = Protocol.TCP) -> PortMapping:
    return PortMapping(protocol=protocol, container_port=8080, host_port=host_port, host_ip=host_ip)


@pytest.mark.parametrize(
    ("wanted", "taken"),
    [
        (port(), port()),
        (port("192.0.2.1"), port()),
        (port(), port("192.0.2.1")),
        (port("192.0.2.1"), port("192.0.2.1")),
        (port("192.0.2.1"), port("0.0.0.0")),
        (port("::"), port("2001:db8::1")),
        (port("2001:db8::1"), port("2001:db8:0::1")),
        (port(protocol=Protocol.SCTP), port(protocol=Protocol.SCTP)),
    ],
)
def test_same_ports_on_overlapping_addresses_conflict(wanted: PortMapping, taken: PortMapping) -> None:
    assert conflict([port(host_port=81), wanted], [taken]) == wanted


@pytest.mark.parametrize(
    ("wanted", "taken"),
    [
        (port(), port(host_port=81)),
        (port(), port(protocol=Protocol.UDP)),
        (port("192.0.2.1"), port("192.0.2.2")),
        (port("0.0.0.0"), port("::")),
        (port("::"), port("192.0.2.1")),
        (port(host_port=0), port(host_port=0)),
    ],
)
def test_other_ports_do_not_conflict(wanted: PortMapping, taken: PortMapping) -> None:
    assert conflict([wanted], [taken]) is None


def test_a_port_is_named_with_its_address() -> None:
    assert describe(port()) == "tcp port 80"
    assert describe(port("2001:db8::1", protocol=Protocol.UDP)) == "udp [2001:db8::1]:80"
