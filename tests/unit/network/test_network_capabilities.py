# SPDX-License-Identifier: Apache-2.0
"""What a pod says becomes capability arguments and CNI_ARGS."""

from __future__ import annotations

from decimal import Decimal

import pytest

from pvecri.errors import InvalidArgument
from pvecri.model import DnsConfig, PortMapping, Protocol, SandboxConfig, SandboxMetadata
from pvecri.network.capabilities import (
    capability_arguments,
    check_names,
    checked_arguments,
    cni_args,
    parse_quantity,
    runtime_config,
)
from pvecri.network.conflist import Plugin, PluginOptions

METADATA = SandboxMetadata(name="web", namespace="default", uid="42")


def arguments(**config: object) -> PluginOptions:
    return capability_arguments(SandboxConfig(metadata=METADATA, **config))  # type: ignore[arg-type]


def test_a_plain_pod_has_no_arguments() -> None:
    assert arguments() == {}


def test_only_mappings_with_a_host_port_are_passed() -> None:
    ports = (
        PortMapping(protocol=Protocol.TCP, container_port=80, host_port=8080),
        PortMapping(protocol=Protocol.UDP, container_port=53, host_port=53, host_ip="10.0.0.1"),
        PortMapping(protocol=Protocol.TCP, container_port=81, host_port=0),
    )

    assert arguments(port_mappings=ports) == {
        "portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "10.0.0.1"},
        ]
    }


def test_bandwidth_comes_from_kubelets_annotations_in_bits() -> None:
    annotations = {"kubernetes.io/ingress-bandwidth": "10M"}

    assert arguments(annotations=annotations)["bandwidth"] == {
        "ingressRate": 10_000_000,
        "ingressBurst": 0xFFFFFFFF,
    }


def test_error_for_an_invalid_bandwidth_names_the_annotation() -> None:
    with pytest.raises(InvalidArgument, match=r"config\.annotations\[kubernetes\.io/egress-bandwidth\]: 'fast'"):
        arguments(annotations={"kubernetes.io/egress-bandwidth": "fast"})


@pytest.mark.parametrize("text", ["1e400", "9" * 64, "1e-400", "0", "999", "1000001G", "1Ei"])
def test_a_bandwidth_that_kubernetes_would_not_take_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"egress-bandwidth\]: '.*' is not between 1k and 1P bits a second"):
        arguments(annotations={"kubernetes.io/egress-bandwidth": text})


@pytest.mark.parametrize(("text", "rate"), [("1k", 1000), ("1P", 10**15), ("1000.2", 1001), (" 1e3 ", 1000)])
def test_a_bandwidth_is_a_whole_number_rounded_up(text: str, rate: int) -> None:
    given = arguments(annotations={"kubernetes.io/egress-bandwidth": text})["bandwidth"]
    assert given == {"egressRate": rate, "egressBurst": 0xFFFFFFFF}


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        ("network.pvecri.io/ips", "10.0.0.9/24, 10.0.0.300"),
        ("network.pvecri.io/ips", "10.0.0.9/40"),
        ("network.pvecri.io/mac", "02:00:00:00:00"),
        ("network.pvecri.io/mac", "02:00:00:00:00:0g"),
    ],
)
def test_an_address_that_is_none_is_refused_by_its_annotation(annotation: str, text: str) -> None:
    with pytest.raises(InvalidArgument, match=rf"^config\.annotations\[{annotation}\]: '.*' is not an? "):
        arguments(annotations={annotation: text})


def test_what_is_left_without_annotations_cannot_fail() -> None:
    annotations = {
        "kubernetes.io/ingress-bandwidth": "1e400",
        "network.pvecri.io/ips": "x",
        "network.pvecri.io/mac": "x",
    }
    ports = (PortMapping(protocol=Protocol.TCP, container_port=80, host_port=8080),)
    config = SandboxConfig(metadata=METADATA, annotations=annotations, port_mappings=ports)
    assert checked_arguments(config) == {
        "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
        "io.kubernetes.cri.pod-annotations": annotations,
    }


def test_dns_addresses_and_mac_are_passed_on() -> None:
    given = arguments(
        dns=DnsConfig(servers=("10.0.0.10",), searches=("cluster.local",)),
        annotations={
            "network.pvecri.io/ips": "10.0.0.9/24, fd00::9/64",
            "network.pvecri.io/mac": "02:00:00:00:00:01",
        },
    )

    assert given["dns"] == {"servers": ["10.0.0.10"], "searches": ["cluster.local"]}
    assert given["ips"] == ["10.0.0.9/24", "fd00::9/64"]
    assert given["mac"] == "02:00:00:00:00:01"


def test_plugin_gets_only_enabled_capabilities() -> None:
    plugin = Plugin(type="x", capabilities={"mac": True, "dns": False})

    assert runtime_config(plugin, {"mac": "m", "dns": {}, "ips": []}) == {"mac": "m"}


def test_cni_args_say_who_the_pod_is() -> None:
    assert cni_args("5a5a", METADATA) == (
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=5a5a;K8S_POD_UID=42"
    )


@pytest.mark.parametrize("name", ["a;IP=10.0.0.1", "a=b"])
def test_name_cannot_inject_cni_args(name: str) -> None:
    metadata = SandboxMetadata(name=name, namespace="default", uid="42")

    with pytest.raises(InvalidArgument, match=r"config\.metadata\.name"):
        check_names(metadata)
    assert cni_args("5a5a", metadata) == (
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_INFRA_CONTAINER_ID=5a5a;K8S_POD_UID=42"
    )


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("10", 10),
        ("10M", 10_000_000),
        ("1.5Gi", 3 << 29),
        ("500k", 500_000),
        ("1e6", 1_000_000),
        ("100m", Decimal("0.1")),
        (".5k", 500),
        ("1E", 10**18),
    ],
)
def test_quantities_are_read_as_kubernetes_writes_them(text: str, number: Decimal | int) -> None:
    assert parse_quantity(text) == number


@pytest.mark.parametrize("text", ["", "M", "10 M", "10MB", "-1", "1ki", "٣", "1e99999", "9" * 5000, "inf", "nan"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a quantity"):
        parse_quantity(text)
