# SPDX-License-Identifier: Apache-2.0
"""A CT's specification becomes the parameters of the create call."""

from __future__ import annotations

import msgspec
import pytest

from pvecri.model import Firewall, ProxmoxInterface, Vmid
from pvecri.proxmox.ctspec import (
    CtSpec,
    ParameterValue,
    create_parameters,
    ct_name,
    ct_tag,
    fingerprint,
    tags_parameter,
    wire,
)
from pvecri.proxmox.sizing import CtSize

SPEC = CtSpec(
    vmid=Vmid(900_001),
    hostname="web-0",
    template="local:vztmpl/pvecri-sandbox_0123456789ab_arm64.tar.gz",
    storage="local-lvm",
    size=CtSize(memory_mib=96, cpulimit=0.25, cpuunits=39),
    arch="arm64",
)


def on_the_wire(spec: CtSpec) -> dict[str, str]:
    return {name: wire(value) for name, value in create_parameters(spec).items()}


def test_a_pods_ct_has_no_network_no_console_and_no_managed_files() -> None:
    assert on_the_wire(SPEC) == {
        "vmid": "900001",
        "ostemplate": "local:vztmpl/pvecri-sandbox_0123456789ab_arm64.tar.gz",
        "hostname": "web-0",
        "rootfs": "local-lvm:0",
        "unprivileged": "1",
        "ostype": "unmanaged",
        "arch": "arm64",
        "console": "0",
        "tty": "0",
        "startup": "down=1",
        "memory": "96",
        "swap": "0",
        "cpulimit": "0.25",
        "cpuunits": "39",
        "start": "1",
    }


@pytest.mark.parametrize(
    ("interface", "expected"),
    [
        (ProxmoxInterface(bridge="vmbr0"), "name=eth0,bridge=vmbr0"),
        (
            ProxmoxInterface(
                bridge="vmbr1",
                tag=20,
                rate=12.5,
                mtu=1400,
                mac="02:00:00:00:00:01",
                ip="10.0.0.5/24",
                gateway="10.0.0.1",
                ip6="fd00::5/64",
                gateway6="fe80::1",
                firewall=Firewall(),
            ),
            "name=eth0,bridge=vmbr1,tag=20,rate=12.5,mtu=1400,hwaddr=02:00:00:00:00:01,"
            "ip=10.0.0.5/24,gw=10.0.0.1,ip6=fd00::5/64,gw6=fe80::1,firewall=1",
        ),
        (ProxmoxInterface(bridge="vmbr0", ip="dhcp"), "name=eth0,bridge=vmbr0,ip=dhcp,host-managed=1"),
        (ProxmoxInterface(bridge="vmbr0", ip="dhcp", ip6="auto"), "name=eth0,bridge=vmbr0,ip=dhcp,host-managed=1"),
    ],
)
def test_an_interface_is_a_net_option(interface: ProxmoxInterface, expected: str) -> None:
    assert on_the_wire(msgspec.structs.replace(SPEC, interfaces=(interface,)))["net0"] == expected


@pytest.mark.parametrize(
    ("change", "name", "value"),
    [
        ({"rootfs_size_gib": 4}, "rootfs", "local-lvm:4"),
        ({"unprivileged": False}, "unprivileged", "0"),
        ({"start": False}, "start", "0"),
        ({"description": "a\nb"}, "description", "a\nb"),
        ({"pool": "k8s"}, "pool", "k8s"),
        ({"hostname": "a_b.c"}, "hostname", "a-b.c"),
    ],
)
def test_each_part_of_a_spec_has_its_parameter(change: dict[str, object], name: str, value: str) -> None:
    assert on_the_wire(msgspec.structs.replace(SPEC, **change))[name] == value


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("web", "web"),
        ("Web-0.default", "Web-0.default"),
        ("-a-..-b-", "a.b"),
        ("ünï", "n"),
        ("", "pod"),
        ("_", "pod"),
        ("a" * 70, "a" * 63),
        (f"{'a' * 40}.{'b' * 40}", f"{'a' * 40}.{'b' * 22}"),
        (f"{'a' * 62}.b", "a" * 62),
        ("web_1.example", "web-1.example"),
    ],
)
def test_any_text_makes_a_name_that_proxmox_accepts(text: str, name: str) -> None:
    assert ct_name(text) == name


@pytest.mark.parametrize(
    ("text", "tag"), [("pvecri", "pvecri"), ("A B", "a-b"), ("-x", "x"), ("", "_"), ("…", "_")]
)
def test_any_text_makes_a_tag_that_proxmox_accepts(text: str, tag: str) -> None:
    assert ct_tag(text) == tag


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "1"), (False, "0"), (0.0, "0"), (1.5, "1.5"), (8192.0, "8192"), (0.01, "0.01"), (7, "7")],
)
def test_values_are_written_as_perl_reads_them(value: ParameterValue, text: str) -> None:
    assert wire(value) == text


def test_tags_are_not_part_of_a_create_which_proxmox_checks_without_the_pool() -> None:
    assert "tags" not in on_the_wire(SPEC)
    assert tags_parameter(("pvecri", "Name_Space/x")) == "pvecri;name_space-x"


def test_fingerprint_is_of_what_a_running_ct_keeps() -> None:
    pods: dict[str, object] = {
        "vmid": Vmid(900_002),
        "hostname": "db-0",
        "description": "of a pod",
        "size": CtSize(memory_mib=128, swap_mib=1, cpulimit=2, cpuunits=5),
    }
    of_pods = {fingerprint(msgspec.structs.replace(SPEC, **{name: value})) for name, value in pods.items()}
    assert of_pods == {fingerprint(SPEC)}
    fixed: dict[str, object] = {
        "template": "local:vztmpl/other.tar.gz",
        "storage": "local",
        "rootfs_size_gib": 1,
        "arch": "amd64",
        "unprivileged": False,
        "pool": "kubernetes",
    }
    others = {fingerprint(msgspec.structs.replace(SPEC, **{name: value})) for name, value in fixed.items()}
    assert len({fingerprint(SPEC), *others}) == 1 + len(fixed)
