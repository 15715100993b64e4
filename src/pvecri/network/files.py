# SPDX-License-Identifier: Apache-2.0
"""The content of the network files that every container of a pod sees. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from pvecri.model import DnsConfig

LOCALHOST = """\
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
ff00::0\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""


def resolv_conf(dns: DnsConfig | None, host: str) -> str:
    """/etc/resolv.conf of a pod; `host` is the node's, which a pod without a DNS configuration gets as it is."""
    if dns is None or not (dns.servers or dns.searches or dns.options):
        return host
    lines = [f"nameserver {server}" for server in dns.servers]
    if dns.searches:
        lines.append(f"search {' '.join(dns.searches)}")
    if dns.options:
        lines.append(f"options {' '.join(dns.options)}")
    return "".join(f"{line}\n" for line in lines)


def hosts(ips: Sequence[str], hostname: str) -> str:
    """/etc/hosts of a pod; kubelet brings its own for containers, so this is what its other clients see."""
    return LOCALHOST + "".join(f"{ip}\t{hostname}\n" for ip in ips if hostname)


def hostname_file(hostname: str) -> str:
    """/etc/hostname of a pod."""
    return f"{hostname}\n"
