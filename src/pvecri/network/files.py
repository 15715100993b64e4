# SPDX-License-Identifier: Apache-2.0
"""Contents of a pod's /etc/hosts, /etc/hostname and /etc/resolv.conf. Pure."""

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
    """/etc/resolv.conf of a pod; `host` is the node's, used if the pod has no DNS configuration."""
    if dns is None or not (dns.servers or dns.searches or dns.options):
        return host
    lines = [f"nameserver {server}" for server in dns.servers]
    if dns.searches:
        lines.append(f"search {' '.join(dns.searches)}")
    if dns.options:
        lines.append(f"options {' '.join(dns.options)}")
    return "".join(f"{line}\n" for line in lines)


def hosts(ips: Sequence[str], hostname: str) -> str:
    """/etc/hosts of a pod. The kubelet mounts its own over it; this one is for other CRI clients."""
    return LOCALHOST + "".join(f"{ip}\t{hostname}\n" for ip in ips if hostname)


def hostname_file(hostname: str) -> str:
    """/etc/hostname of a pod."""
    return f"{hostname}\n"
