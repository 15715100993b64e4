# SPDX-License-Identifier: Apache-2.0
"""The network files of a pod."""

from __future__ import annotations

import pytest

from pvecri.model import DnsConfig
from pvecri.network.files import hostname_file, hosts, resolv_conf

HOST = "nameserver 192.0.2.1\n"


@pytest.mark.parametrize(
    ("dns", "expected"),
    [
        (None, HOST),
        (DnsConfig(), HOST),
        (DnsConfig(servers=("10.0.0.10", "10.0.0.11")), "nameserver 10.0.0.10\nnameserver 10.0.0.11\n"),
        (DnsConfig(searches=("a.local", "b.local")), "search a.local b.local\n"),
        (
            DnsConfig(servers=("10.0.0.10",), searches=("a.local",), options=("ndots:5", "edns0")),
            "nameserver 10.0.0.10\nsearch a.local\noptions ndots:5 edns0\n",
        ),
    ],
)
def test_resolv_conf_is_the_pods_or_the_nodes(dns: DnsConfig | None, expected: str) -> None:
    assert resolv_conf(dns, HOST) == expected


def test_hosts_has_localhost_and_the_pods_name_by_each_address() -> None:
    text = hosts(("10.1.0.2", "fd00::2"), "web")

    assert text.startswith("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost")
    assert text.endswith("10.1.0.2\tweb\nfd00::2\tweb\n")


def test_hosts_of_a_pod_without_addresses_has_localhost_alone() -> None:
    assert "web" not in hosts((), "web")


def test_hostname_is_a_line() -> None:
    assert hostname_file("web") == "web\n"
