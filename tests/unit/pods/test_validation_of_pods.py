# SPDX-License-Identifier: Apache-2.0
"""Which pods are refused, in which words, and which are just about accepted."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from pvecri.errors import InvalidArgument
from pvecri.model import (
    DnsConfig,
    IdMapping,
    NamespaceMode,
    NamespaceOptions,
    PortMapping,
    Protocol,
    Resources,
    SandboxConfig,
    SandboxMetadata,
    SandboxSecurity,
    UserNamespace,
)
from pvecri.pods.validation import check_sandbox

METADATA = SandboxMetadata(name="web", namespace="shop", uid="a1")
POD, CONTAINER, NODE, TARGET = NamespaceMode
ROOT = IdMapping(container_id=0, host_id=70_000, length=65_536)
OTHER = IdMapping(container_id=0, host_id=80_000, length=65_536)
SAME_PORT = (80, 8080, ""), (81, 8080, "")


def named(**said: Any) -> SandboxConfig:
    return SandboxConfig(metadata=replace(METADATA, **said))


def pod(**said: Any) -> SandboxConfig:
    return SandboxConfig(metadata=METADATA, **said)


def secured(**said: Any) -> SandboxConfig:
    return pod(security=SandboxSecurity(**said))


def sharing(**said: Any) -> SandboxConfig:
    return secured(namespaces=NamespaceOptions(**said))


def mapped(mode: NamespaceMode, uids: Any = (), gids: Any = (), **said: Any) -> SandboxConfig:
    return sharing(user=UserNamespace(mode=mode, uids=uids, gids=gids), **said)


def ports(*mappings: tuple[int, int, str], protocol: Protocol = Protocol.TCP) -> tuple[PortMapping, ...]:
    return tuple(
        PortMapping(protocol=protocol, container_port=inside, host_port=outside, host_ip=ip)
        for inside, outside, ip in mappings
    )


def sysctl(name: str, value: str = "1", **options: Any) -> SandboxConfig:
    return pod(sysctls={name: value}, security=SandboxSecurity(namespaces=NamespaceOptions(**options)))


NAMES = [
    (named(name=""), "config.metadata.name: must not be empty"),
    (named(namespace=""), "config.metadata.namespace: must not be empty"),
    (named(uid=""), "config.metadata.uid: must not be empty"),
    (named(name="n" * 254), "config.metadata.name: is longer than 253 characters"),
    (named(name="a/b"), "config.metadata.name: 'a/b' contains a character that is not allowed in a name"),
    (
        named(uid="1\nsandbox: 2"),
        r"config.metadata.uid: '1\nsandbox: 2' contains a character that is not allowed in a name",
    ),
    (pod(hostname="h" * 65), f"config.hostname: '{'h' * 65}' is longer than 64 bytes"),
    (pod(hostname="é" * 33), f"config.hostname: '{'é' * 33}' is longer than 64 bytes"),
    (pod(hostname="web\n"), r"config.hostname: 'web\n' has a character that a line of /etc/hosts cannot have"),
    (pod(hostname="a b"), "config.hostname: 'a b' has a character that a line of /etc/hosts cannot have"),
    (pod(hostname="#a"), "config.hostname: '#a' has a character that a line of /etc/hosts cannot have"),
    (pod(log_directory="logs"), "config.log_directory: 'logs' is not an absolute path"),
    (pod(log_directory="/l\0"), r"config.log_directory: '/l\x00' is not an absolute path"),
]

NETWORK = [
    (pod(dns=DnsConfig(servers=("10.0.0.1", ""))), "config.dns_config.servers[1]: '' is not one word"),
    (pod(dns=DnsConfig(servers=("dns",))), "config.dns_config.servers[0]: 'dns' is not an IP address"),
    (pod(dns=DnsConfig(searches=("a b",))), "config.dns_config.searches[0]: 'a b' is not one word"),
    (pod(dns=DnsConfig(options=("x\ny",))), r"config.dns_config.options[0]: 'x\ny' is not one word"),
    (pod(port_mappings=ports((0, 1, ""))), "config.port_mappings[0].container_port: 0 is not a port (1 to 65535)"),
    (
        pod(port_mappings=ports((80, 0, ""), (65536, 1, ""))),
        "config.port_mappings[1].container_port: 65536 is not a port (1 to 65535)",
    ),
    (pod(port_mappings=ports((1, -1, ""))), "config.port_mappings[0].host_port: -1 is not a port (0 to 65535)"),
    (
        pod(port_mappings=ports((1, 65536, ""))),
        "config.port_mappings[0].host_port: 65536 is not a port (0 to 65535)",
    ),
    (
        pod(port_mappings=ports((1, 1, "10.0.0.256"))),
        "config.port_mappings[0].host_ip: '10.0.0.256' is not an IP address",
    ),
    (pod(port_mappings=ports(*SAME_PORT)), "config.port_mappings[1].host_port: 8080 is mapped by [0] already"),
]

SECURITY = [
    (
        secured(selinux_label="u:r:t:s0"),
        "config.linux.security_context.selinux_options: 'u:r:t:s0' is not supported: Proxmox VE has AppArmor, not "
        "SELinux (runtime.ignore_selinux_options is false)",
    ),
]

NAMESPACES = [
    (sharing(network=CONTAINER), "network: CONTAINER is not a mode for a network namespace"),
    (sharing(ipc=TARGET), "ipc: TARGET is not a mode for an IPC namespace"),
    (mapped(NODE, uids=(ROOT,)), "userns_options.uids: mappings are only for mode POD"),
    (mapped(NODE, gids=(ROOT,)), "userns_options.uids: mappings are only for mode POD"),
    (mapped(CONTAINER), "userns_options.mode: CONTAINER is not a mode for a user namespace"),
    (
        mapped(POD, (ROOT,), (ROOT,), pid=NODE),
        "userns_options.mode: POD cannot be combined with a network, pid or ipc namespace of the node",
    ),
    (mapped(POD), "userns_options.uids: must be one mapping, not 0"),
    (mapped(POD, (ROOT,), (ROOT, OTHER)), "userns_options.gids: must be one mapping, not 2"),
    (mapped(POD, (ROOT,), (OTHER,)), "userns_options.gids: must be the same mapping as uids"),
    (
        mapped(POD, (replace(ROOT, container_id=1),), (ROOT,)),
        "userns_options.uids[0]: must map container_id 0 and have a length",
    ),
    (
        mapped(POD, (replace(ROOT, length=0),), (ROOT,)),
        "userns_options.uids[0]: must map container_id 0 and have a length",
    ),
]

SYSCTLS = [
    (sysctl("kernel"), "[kernel]: is not the name of a sysctl"),
    (sysctl("net..ipv4"), "[net..ipv4]: is not the name of a sysctl"),
    (sysctl("net.ipv4/../../kernel/x"), "[net.ipv4/../../kernel/x]: is not the name of a sysctl"),
    (sysctl("vm.swappiness"), "[vm.swappiness]: is not a namespaced sysctl that a pod may set"),
    (sysctl("kernel.domainnames"), "[kernel.domainnames]: is not a namespaced sysctl that a pod may set"),
    (sysctl("kernel.hostname"), "[kernel.hostname]: is not a namespaced sysctl that a pod may set"),
    (sysctl("kernel/panic"), "[kernel/panic]: is not a namespaced sysctl that a pod may set"),
    (sysctl("network.x"), "[network.x]: is not a namespaced sysctl that a pod may set"),
    (sysctl("net.a", network=NODE), "[net.a]: is not allowed in a pod that uses the node's network"),
    (
        sysctl("kernel.shmall", ipc=NODE),
        "[kernel.shmall]: is not allowed in a pod that uses the node's IPC namespace",
    ),
    (
        sysctl("kernel.domainname", network=NODE),
        "[kernel.domainname]: is not allowed in a pod that uses the node's network",
    ),
    (sysctl("net.a", "1\0"), "[net.a]: contains a NUL character"),
]

LIMITS = [
    (Resources(cpu_period=-1), "cpu_period: must not be negative"),
    (Resources(cpu_shares=-1), "cpu_shares: must not be negative"),
    (Resources(memory_limit=-2), "memory_limit_in_bytes: must not be negative, except -1 for no limit"),
    (Resources(oom_score_adj=-1001), "oom_score_adj: -1001 is not within -1000 to 1000"),
    (Resources(oom_score_adj=1001), "oom_score_adj: 1001 is not within -1000 to 1000"),
    (
        Resources(memory_limit=2, memory_swap_limit=1),
        "memory_swap_limit_in_bytes: is less than memory_limit_in_bytes",
    ),
]

REFUSED = [
    *NAMES,
    *NETWORK,
    *SECURITY,
    *((config, f"config.linux.security_context.namespace_options.{words}") for config, words in NAMESPACES),
    *((config, f"config.linux.sysctls{words}") for config, words in SYSCTLS),
    *((pod(resources=limits), f"config.linux.resources.{words}") for limits, words in LIMITS),
    *((pod(overhead=limits), f"config.linux.overhead.{words}") for limits, words in LIMITS),
]


@pytest.mark.parametrize(("config", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_invalid_pod_is_refused_with_message(config: SandboxConfig, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_sandbox(config, "")
    assert str(caught.value) == message


ACCEPTED = {
    "nothing but a name": pod(),
    "the longest name": named(name="n" * 253),
    "a name of many alphabets": named(name="wéb-ポッド"),
    "the longest host name": pod(hostname=f"{'h' * 31}.{'h' * 32}"),
    "the longest label of a host name": pod(hostname="h" * 64),
    "a host name with an underscore": pod(hostname="web_1.example"),
    "a host name that DNS does not have": pod(hostname="-web."),
    "a host name in capitals and digits": pod(hostname="0WEB-1.example"),
    "logs": pod(log_directory="/var/log/pods/x"),
    "DNS over both protocols": pod(
        dns=DnsConfig(servers=("10.0.0.1", "fd00::1"), searches=("a.b",), options=("x:1",))
    ),
    "no DNS": pod(dns=DnsConfig()),
    "the first and the last port": pod(port_mappings=ports((1, 65535, ""), (65535, 1, ""))),
    "a port for no port of the node, twice": pod(port_mappings=ports((80, 0, ""), (80, 0, ""))),
    "one port on two addresses": pod(port_mappings=ports((80, 80, "10.0.0.1"), (80, 80, "::1"))),
    "one port of two protocols": pod(
        port_mappings=ports((53, 53, "")) + ports((53, 53, ""), protocol=Protocol.UDP)
    ),
    "the node's namespaces": sharing(network=NODE, pid=NODE, ipc=NODE),
    "processes of containers apart": sharing(pid=CONTAINER),
    "a user namespace": mapped(POD, (ROOT,), (ROOT,)),
    "the node's user namespace": mapped(NODE),
    "a group without a user, which the kubelet asks for": secured(run_as_group=1000),
    "sysctls of its own": pod(
        sysctls=dict.fromkeys(
            ("net.ipv4.ip_forward", "net/ipv4/x", "kernel.sem", "fs.mqueue.msg_max", "kernel.domainname"), ""
        )
    ),
    "an IPC sysctl beside the node's network": sysctl("kernel.shmmax", network=NODE),
    "a network sysctl beside the node's IPC": sysctl("net.core.somaxconn", ipc=NODE),
    "as much swap as memory": pod(resources=Resources(memory_limit=2, memory_swap_limit=2)),
    "memory without a word on swap": pod(resources=Resources(memory_limit=2)),
    "swap without end": pod(resources=Resources(memory_limit=2, memory_swap_limit=-1)),
    "CPU time without end": pod(resources=Resources(cpu_quota=-1)),
    "the edges of OOM scores": pod(
        resources=Resources(oom_score_adj=-1000), overhead=Resources(oom_score_adj=1000)
    ),
}


@pytest.mark.parametrize("what", ACCEPTED)
def test_valid_pod_is_accepted(what: str) -> None:
    check_sandbox(ACCEPTED[what], "")


@pytest.mark.parametrize("handler", ["", "pvecri"])
def test_a_known_runtime_handler_is_accepted(handler: str) -> None:
    check_sandbox(pod(), handler)


def test_error_for_an_unknown_runtime_handler_lists_the_known_ones() -> None:
    with pytest.raises(InvalidArgument, match=r"^runtime_handler: 'kata' is unknown; known handlers: 'pvecri'$"):
        check_sandbox(pod(), "kata")
