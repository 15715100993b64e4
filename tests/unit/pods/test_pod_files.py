# SPDX-License-Identifier: Apache-2.0
"""What a pod is called, and how its sysctls are written where only its own root may."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from msgspec.structs import replace
from support.filled import filled

from pvecri.linux import programs
from pvecri.linux.programs import Ended
from pvecri.model import (
    IdMapping,
    NamespaceMode,
    NamespaceOptions,
    Sandbox,
    SandboxId,
    SandboxSecurity,
)
from pvecri.pods import files
from pvecri.pods.registry import PodEntry

ID = SandboxId("0123456789abcdef" * 4)
NODE = NamespaceMode.NODE
OWN = NamespaceOptions()
ROOT = (IdMapping(container_id=0, host_id=100_000, length=65_536),)


def sandbox(
    hostname: str = "",
    sysctls: dict[str, str] | None = None,
    mappings: tuple[IdMapping, ...] = (),
    options: NamespaceOptions = OWN,
) -> Sandbox:
    value = filled(Sandbox)
    config = replace(
        value.config, hostname=hostname, sysctls=sysctls or {}, security=SandboxSecurity(namespaces=options)
    )
    return replace(value, id=ID, config=config, mappings=mappings)


def test_hostname_of_the_request_is_used() -> None:
    assert files.hostname(sandbox("web-0")) == "web-0"


def test_unset_hostname_defaults_to_the_id() -> None:
    assert files.hostname(sandbox()) == "0123456789ab"


def test_hostname_in_the_nodes_network_is_the_nodes() -> None:
    assert files.hostname(sandbox("web-0", options=NamespaceOptions(network=NODE))) == socket.gethostname()


@pytest.mark.parametrize(
    ("options", "mappings", "entered"),
    [
        (OWN, ROOT, ["ipc", "net", "uts", "user"]),
        (OWN, (), ["ipc", "net", "uts"]),
        (NamespaceOptions(ipc=NODE), (), ["net", "uts"]),
        (NamespaceOptions(network=NODE), (), ["ipc"]),
    ],
)
def test_sysctls_are_written_in_the_pods_own_namespaces_and_in_no_others(
    options: NamespaceOptions, mappings: tuple[IdMapping, ...], entered: list[str]
) -> None:
    pod = PodEntry(sandbox(sysctls={"net.a": "1"}, mappings=mappings, options=options), Path("/run/pod"))
    command = files.sysctl_command(pod, pod.value.config.sysctls)
    assert command[: command.index("--")] == ["nsenter", *(f"--{kind}=/run/pod/ns/{kind}" for kind in entered)]


def test_a_sysctl_is_written_by_its_path_below_proc_sys() -> None:
    pod = PodEntry(sandbox(sysctls={"net.ipv4.ip_forward": "1", "kernel/sem": "1 2 3 4"}), Path("/run/pod"))
    assert files.sysctl_command(pod, pod.value.config.sysctls)[-6:] == [
        "net.ipv4.ip_forward",
        "/proc/sys/net/ipv4/ip_forward",
        "1",
        "kernel/sem",
        "/proc/sys/kernel/sem",
        "1 2 3 4",
    ]


def written(*wanted: tuple[str, Path, str]) -> Ended:
    """The end of the command for sysctls in these files, run outside of any pod."""
    pod = PodEntry(sandbox(), Path("/run/pod"))
    command = files.sysctl_command(pod, {})
    words = [str(part) for each in wanted for part in each]
    return programs.run_blocking([*command[command.index("--") + 1 :], *words], timeout=60)


def test_sysctl_values_are_not_interpreted_by_the_shell(tmp_path: Path) -> None:
    values = {"one": "$(id) 'x' %s\\n", "two": "-n 4096"}
    assert written(*((name, tmp_path / name, value) for name, value in values.items())).returncode == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == values


@pytest.mark.parametrize(
    ("file", "reason"),
    [("/dev/full", "No space left on device"), ("/proc/sys/kernel/nothing", "No such file or directory")],
)
def test_refused_sysctl_is_known_with_the_kernels_error(tmp_path: Path, file: str, reason: str) -> None:
    ended = written(("net.a", tmp_path / "a", "1"), ("net.b", Path(file), "2"), ("net.c", tmp_path / "c", "3"))
    assert ended.returncode == 1
    assert files.refused_sysctl(ended) == ("net.b", reason)
    assert not (tmp_path / "c").exists()


def test_sysctls_of_interfaces_are_told_from_others() -> None:
    others = [
        "net.ipv4.ip_forward",
        "net.ipv4.conf.all.rp_filter",
        "net/ipv6/conf/default/forwarding",
        "kernel.sem",
    ]
    own = [
        "net.ipv4.conf.eth0.rp_filter",
        "net/ipv6/neigh/eth0.100/delay_first_probe_time",
        "net.mpls.conf.net1.input",
    ]
    sysctls = dict.fromkeys([*others, *own], "1")
    assert list(files.sysctls_of(sysctls, interfaces=False)) == others
    assert list(files.sysctls_of(sysctls, interfaces=True)) == own


@pytest.mark.parametrize(
    ("wanted", "mappings", "written"),
    [
        ("0 2147483647", (), "0 2147483647"),
        ("0 2147483647", (IdMapping(container_id=0, host_id=100_000, length=65_536),), "100000 165535"),
        ("1000 2000", (IdMapping(container_id=0, host_id=100_000, length=65_536),), "101000 102000"),
        ("0 2147483647", (IdMapping(container_id=0, host_id=4_072_865_792, length=65_536),), "1 0"),
        ("1 0", (IdMapping(container_id=0, host_id=100_000, length=65_536),), "1 0"),
    ],
)
def test_ping_group_range_is_written_in_host_ids(
    wanted: str, mappings: tuple[IdMapping, ...], written: str
) -> None:
    assert files.host_ping_groups(wanted, mappings) == written


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/conf/eth0.100/forwarding", "net/ipv4/conf/eth0.100/forwarding"),
    ],
)
def test_first_separator_of_a_sysctl_decides(name: str, path: str) -> None:
    assert files.sysctl_file(name) == Path("/proc/sys") / path
