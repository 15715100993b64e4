# SPDX-License-Identifier: Apache-2.0
"""Connections to a pod's ports are made inside its network namespace."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.netns import network_namespace

from pvecri.errors import FailedPrecondition
from pvecri.linux import namespaces
from pvecri.oci.port_forward import PodPorts


@pytest.fixture
def netns() -> Iterator[Path]:
    with network_namespace() as path:
        subprocess.run(["nsenter", f"--net={path}", "ip", "link", "set", "lo", "up"], check=True)
        yield path


def listen(netns: Path, family: socket.AddressFamily, address: str) -> socket.socket:
    """A server in the namespace, on its loopback interface."""
    return namespaces.run_inside([netns], lambda: socket.create_server((address, 0), family=family))


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
async def test_port_is_reached_on_ipv4_and_ipv6_loopback(
    netns: Path, family: socket.AddressFamily, address: str
) -> None:
    with listen(netns, family, address) as server:
        port = server.getsockname()[1]
        connection = await PodPorts("0123", netns, lambda: True).connect(port)
        with connection, await asyncio.to_thread(lambda: server.accept()[0]) as other:
            await asyncio.get_running_loop().sock_sendall(connection, b"hello")
            assert await asyncio.to_thread(other.recv, 5) == b"hello"


async def test_port_of_the_pod_is_not_the_nodes(netns: Path) -> None:
    with listen(netns, socket.AF_INET, "127.0.0.1") as server:
        port = server.getsockname()[1]
        with pytest.raises(OSError, match=f"connect to localhost:{port} inside the pod: Connection refused"):
            await PodPorts("0123", None, lambda: True).connect(port)


async def test_error_for_a_pod_that_is_gone_has_the_words_by_which_client_go_ends(tmp_path: Path) -> None:
    for gone in (PodPorts("0123", tmp_path / "net", lambda: True), PodPorts("0123", None, lambda: False)):
        with pytest.raises(FailedPrecondition, match=r"^sandbox 0123 is not running$"):
            await gone.connect(80)
