# SPDX-License-Identifier: Apache-2.0
"""An interface with an address by DHCP, which the node's client sets; here the test does."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.netns import network_namespace

from pvecri.config.settings import NetworkClass, NetworkConfig
from pvecri.errors import DeadlineExceeded
from pvecri.model import SandboxConfig, SandboxId, SandboxMetadata
from pvecri.network.manager import NetworkManager

SANDBOX_ID = SandboxId("af" * 32)
SANDBOX = SandboxConfig(
    metadata=SandboxMetadata(name="web", namespace="default", uid="42"),
    annotations={"network.pvecri.io/class": "lan"},
)


@pytest.fixture
def netns() -> Iterator[Path]:
    """A network namespace with an eth0, as Proxmox leaves a CT's."""
    with network_namespace() as path:
        inside(path, "ip link add eth0 type veth peer name other")
        yield path


def inside(netns: Path, command: str) -> None:
    subprocess.run(["nsenter", f"--net={netns}", *command.split()], check=True)


def manager(directory: Path, timeout: float) -> NetworkManager:
    lan = NetworkClass(bridge="vmbr0", ip="dhcp")
    return NetworkManager(
        NetworkConfig(
            conf_dir=directory, cache_dir=directory / "cache", classes={"lan": lan}, plugin_timeout=timeout
        )
    )


async def test_leased_address_is_the_pods_address(tmp_path: Path, netns: Path) -> None:
    patient = manager(tmp_path, 30)
    attaching = asyncio.create_task(patient.attach(SANDBOX_ID, netns, patient.request_of(SANDBOX)))
    inside(netns, "ip addr add 192.0.2.77/24 dev eth0")

    network = await attaching

    assert network.ips == ("192.0.2.77",)


async def test_error_for_a_missing_lease_names_the_requirements(tmp_path: Path, netns: Path) -> None:
    hasty = manager(tmp_path, 0.2)
    with pytest.raises(DeadlineExceeded, match=r"DHCP on bridge vmbr0 .* within 0\.2 s .*version 9\.1"):
        await hasty.attach(SANDBOX_ID, netns, hasty.request_of(SANDBOX))


async def test_pod_without_cni_has_nothing_to_detach(tmp_path: Path, netns: Path) -> None:
    await manager(tmp_path, 30).detach(SANDBOX_ID, netns, SANDBOX)
