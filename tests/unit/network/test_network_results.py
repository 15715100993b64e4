# SPDX-License-Identifier: Apache-2.0
"""CNI results become the pod's addresses, and failures the plugins' words."""

from __future__ import annotations

import json

import pytest

from pvecri.network.plugins import read_failure
from pvecri.network.result import pod_network

INTERFACES = [{"name": "cni0"}, {"name": "veth1"}, {"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/x"}]


def result(*ips: dict[str, object], interfaces: list[dict[str, str]] = INTERFACES) -> bytes:
    return json.dumps(
        {"cniVersion": "1.0.0", "interfaces": interfaces, "ips": ips, "routes": [], "dns": {}}
    ).encode()


def test_addresses_lose_their_prefix_and_keep_their_order() -> None:
    network = pod_network(
        result(
            {"address": "10.1.0.2/24", "gateway": "10.1.0.1", "interface": 2},
            {"address": "fd00::2/64", "interface": 2},
        )
    )

    assert network.ips == ("10.1.0.2", "fd00::2")


def test_address_of_a_host_side_interface_is_not_the_pods() -> None:
    assert pod_network(result({"address": "10.1.0.1/24", "interface": 0}, {"address": "10.1.0.2/24"})).ips == (
        "10.1.0.2",
    )


def test_the_older_versions_results_read_the_same() -> None:
    old = b'{"cniVersion": "0.3.1", "ips": [{"version": "4", "address": "10.1.0.2/24"}], "dns": {}}'

    assert pod_network(old).ips == ("10.1.0.2",)


@pytest.mark.parametrize("text", [b"", b"OK", b"[]", b'{"ips": [{"address": "nonsense"}]}'])
def test_invalid_result_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a CNI result|nonsense"):
        pod_network(text)


@pytest.mark.parametrize(
    ("status", "stdout", "stderr", "expected"),
    [
        (1, b'{"code": 7, "msg": "bad config"}', "", (7, "bad config")),
        (1, b'{"code": 7, "msg": "bad config", "details": "no subnet"}', "log", (7, "bad config; no subnet")),
        (2, b"", "panic: oh\n", (0, "ended with status 2: panic: oh")),
        (-9, b"half a", "", (0, "ended with signal 9: half a")),
        (1, b"", "", (0, "ended with status 1: no output")),
    ],
)
def test_failure_has_the_plugins_message(
    status: int, stdout: bytes, stderr: str, expected: tuple[int, str]
) -> None:
    assert read_failure(status, stdout, stderr) == expected
