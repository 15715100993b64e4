# SPDX-License-Identifier: Apache-2.0
"""The Network Manager with CNI's own bridge, host-local and portmap plugins."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from support.netns import network_namespace, own_network_namespace

from pvecri.config.settings import NetworkConfig
from pvecri.errors import NotFound
from pvecri.linux import namespaces
from pvecri.model import PortMapping, Protocol, SandboxConfig, SandboxId, SandboxMetadata
from pvecri.network.attachment import AttachmentStore
from pvecri.network.errors import NetworkNotReady
from pvecri.network.manager import NetworkManager

SANDBOX_ID = SandboxId("5a" * 32)
SANDBOX = SandboxConfig(metadata=SandboxMetadata(name="web", namespace="default", uid="42"))
HOST_PORT = 18_080


@pytest.fixture(autouse=True)
def node() -> Iterator[None]:
    with own_network_namespace():
        yield


@pytest.fixture
def config(tmp_path: Path) -> NetworkConfig:
    conf_dir = tmp_path / "net.d"
    conf_dir.mkdir()
    return NetworkConfig(conf_dir=conf_dir, bin_dirs=(Path("/usr/lib/cni"),), cache_dir=tmp_path / "cache")


@pytest.fixture
async def manager(config: NetworkConfig) -> AsyncIterator[NetworkManager]:
    network_manager = NetworkManager(config)
    await network_manager.start()
    yield network_manager
    await network_manager.close()


@pytest.fixture
def bridge(config: NetworkConfig, tmp_path: Path) -> Path:
    """A bridge network with addresses of host-local and host ports; returns host-local's directory."""
    write_network(config, [bridge_plugin(tmp_path), {"type": "portmap", "capabilities": {"portMappings": True}}])
    return tmp_path / "leases"


def bridge_plugin(directory: Path) -> dict[str, object]:
    ipam = {
        "type": "host-local",
        "dataDir": str(directory / "leases"),
        "ranges": [[{"subnet": "10.213.9.0/24"}], [{"subnet": "fd00:213:9::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    return {"type": "bridge", "bridge": "pvtest0", "isGateway": True, "ipMasq": True, "ipam": ipam}


def write_network(config: NetworkConfig, plugins: list[dict[str, object]], version: str = "1.0.0") -> None:
    conflist = {"cniVersion": version, "name": "pods", "plugins": plugins}
    (config.conf_dir / "10-pods.conflist").write_text(json.dumps(conflist))


def recorded(config: NetworkConfig) -> list[SandboxId]:
    """The sandboxes with an attachment on record."""
    return AttachmentStore(config.cache_dir).sandboxes()


def leases(directory: Path) -> set[str]:
    """The addresses that host-local has given out."""
    return {path.name for path in directory.glob("pods/*") if path.name[0] in "1f"}


def rules() -> list[str]:
    """The packet filter's rules that speak of the sandbox or its port."""
    saved = subprocess.run(["iptables-save"], check=True, capture_output=True, text=True).stdout
    return [line for line in saved.splitlines() if SANDBOX_ID in line or str(HOST_PORT) in line]


def addresses(netns: Path, device: str) -> str:
    command = ["nsenter", f"--net={netns}", "ip", "-o", "addr", "show", device]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


async def test_an_attached_pod_has_lo_eth0_and_its_addresses(
    manager: NetworkManager, bridge: Path, netns: Path
) -> None:
    network = await manager.attach(SANDBOX_ID, netns, manager.request_of(SANDBOX))

    assert network.ips == ("10.213.9.2", "fd00:213:9::2")
    assert "10.213.9.2/24" in addresses(netns, "eth0")
    assert "127.0.0.1/8" in addresses(netns, "lo")
    await manager.detach(SANDBOX_ID, netns, SANDBOX)


async def test_detached_pod_leaves_no_ipam_allocation_rule_or_record(
    manager: NetworkManager, config: NetworkConfig, bridge: Path, netns: Path
) -> None:
    sandbox = with_host_port()
    await manager.attach(SANDBOX_ID, netns, manager.request_of(sandbox))
    assert leases(bridge) == {"10.213.9.2", "fd00:213:9::2"}
    assert rules()

    await manager.detach(SANDBOX_ID, netns, sandbox)

    assert (leases(bridge), rules(), recorded(config)) == (set(), [], [])
    await manager.detach(SANDBOX_ID, netns, sandbox)


async def test_detach_without_the_namespace_releases_the_addresses(manager: NetworkManager, bridge: Path) -> None:
    with network_namespace() as netns:
        await manager.attach(SANDBOX_ID, netns, manager.request_of(SANDBOX))

    await manager.detach(SANDBOX_ID, netns, SANDBOX)
    await manager.detach(SANDBOX_ID, None, SANDBOX)

    assert leases(bridge) == set()


async def test_pod_can_be_detached_if_the_plugins_lost_their_state(
    manager: NetworkManager, config: NetworkConfig, bridge: Path, netns: Path
) -> None:
    sandbox = with_host_port()
    await manager.attach(SANDBOX_ID, netns, manager.request_of(sandbox))
    shutil.rmtree(bridge)
    remove_interface(netns)
    forget_bridge_and_rules()

    await manager.detach(SANDBOX_ID, netns, sandbox)

    assert recorded(config) == []


async def test_host_port_reaches_the_pod(manager: NetworkManager, bridge: Path, netns: Path) -> None:
    sandbox = with_host_port()
    await manager.attach(SANDBOX_ID, netns, manager.request_of(sandbox))
    listener = namespaces.run_inside([netns], lambda: socket.create_server(("", 8080)))
    with listener, socket.create_connection(("10.213.9.1", HOST_PORT)) as client:
        served, _ = listener.accept()
        with served:
            client.sendall(b"hello")
            assert served.recv(5) == b"hello"
    await manager.detach(SANDBOX_ID, netns, sandbox)


async def test_host_port_reaches_the_pod_by_ipv6(manager: NetworkManager, bridge: Path, netns: Path) -> None:
    # The bridge's own address is asked for at once, not after duplicate address detection.
    Path("/proc/sys/net/ipv6/conf/default/accept_dad").write_text("0")
    sandbox = with_host_port()
    await manager.attach(SANDBOX_ID, netns, manager.request_of(sandbox))
    listener = namespaces.run_inside([netns], lambda: socket.create_server(("::", 8080), family=socket.AF_INET6))
    with listener, socket.create_connection(("fd00:213:9::1", HOST_PORT)) as client:
        served, _ = listener.accept()
        with served:
            client.sendall(b"hello")
            assert served.recv(5) == b"hello"
    await manager.detach(SANDBOX_ID, netns, sandbox)


async def test_udp_host_port_reaches_the_pod_through_loopback(
    manager: NetworkManager, bridge: Path, netns: Path
) -> None:
    mapping = PortMapping(protocol=Protocol.UDP, container_port=8080, host_port=HOST_PORT)
    sandbox = SandboxConfig(metadata=SANDBOX.metadata, port_mappings=(mapping,))
    await manager.attach(SANDBOX_ID, netns, manager.request_of(sandbox))
    listener = namespaces.run_inside([netns], lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with listener, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        listener.bind(("", 8080))
        listener.settimeout(10)
        client.sendto(b"hello", ("127.0.0.1", HOST_PORT))
        assert listener.recvfrom(10)[0] == b"hello"
    await manager.detach(SANDBOX_ID, netns, sandbox)


async def test_mapping_without_a_host_port_opens_no_port(
    manager: NetworkManager, bridge: Path, netns: Path
) -> None:
    mapping = PortMapping(protocol=Protocol.TCP, container_port=HOST_PORT, host_port=0)
    sandbox = SandboxConfig(metadata=SANDBOX.metadata, port_mappings=(mapping,))

    await manager.attach(SANDBOX_ID, netns, manager.request_of(sandbox))

    assert not [rule for rule in rules() if str(HOST_PORT) in rule]
    await manager.detach(SANDBOX_ID, netns, sandbox)


async def test_detach_uses_the_configuration_of_attach(
    manager: NetworkManager, config: NetworkConfig, bridge: Path, netns: Path
) -> None:
    await manager.attach(SANDBOX_ID, netns, manager.request_of(SANDBOX))
    (config.conf_dir / "10-pods.conflist").unlink()
    with pytest.raises(NetworkNotReady):
        await manager.attach(SandboxId("6b" * 32), netns, manager.request_of(SANDBOX))

    await manager.detach(SANDBOX_ID, netns, SANDBOX)

    assert leases(bridge) == set()


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0"])
async def test_older_configurations_work(
    manager: NetworkManager, config: NetworkConfig, tmp_path: Path, netns: Path, version: str
) -> None:
    write_network(config, [bridge_plugin(tmp_path)], version)

    network = await manager.attach(SANDBOX_ID, netns, manager.request_of(SANDBOX))
    await manager.detach(SANDBOX_ID, netns, SANDBOX)

    assert network.ips[0] == "10.213.9.2"
    assert leases(tmp_path / "leases") == set()


async def test_concurrently_attached_pods_get_different_addresses(manager: NetworkManager, bridge: Path) -> None:
    with network_namespace() as first, network_namespace() as second:
        pods = {SandboxId("1a" * 32): first, SandboxId("2b" * 32): second}
        networks = await asyncio.gather(
            *(manager.attach(each, path, manager.request_of(SANDBOX)) for each, path in pods.items())
        )
        await asyncio.gather(*(manager.detach(each, path, SANDBOX) for each, path in pods.items()))

    assert len({network.ips for network in networks}) == 2
    assert leases(bridge) == set()


async def test_a_namespace_that_does_not_exist_is_not_found(
    manager: NetworkManager, config: NetworkConfig, bridge: Path
) -> None:
    with pytest.raises(NotFound, match="/proc/0/ns/net does not exist"):
        await manager.attach(SANDBOX_ID, Path("/proc/0/ns/net"), manager.request_of(SANDBOX))

    assert recorded(config) == []


def forget_bridge_and_rules() -> None:
    for command in ("ip link del pvtest0", "iptables -t nat -F", "iptables -t nat -X"):
        subprocess.run(command.split(), check=True)


def remove_interface(netns: Path) -> None:
    subprocess.run(["nsenter", f"--net={netns}", "ip", "link", "del", "eth0"], check=True)


def with_host_port() -> SandboxConfig:
    mapping = PortMapping(protocol=Protocol.TCP, container_port=8080, host_port=HOST_PORT)
    return SandboxConfig(metadata=SANDBOX.metadata, port_mappings=(mapping,))
