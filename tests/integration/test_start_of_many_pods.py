# SPDX-License-Identifier: Apache-2.0
"""What the daemon's start costs among few and among many pods, counted by the files that it opens. Needs root."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace
from support import opened
from support.filled import filled

from pvecri.config.settings import Config, ImagesConfig, NetworkConfig, OciConfig, RuntimeConfig
from pvecri.images.manager import ImageManager
from pvecri.linux import mounts
from pvecri.model import Container, ContainerId, ContainerState, Sandbox, SandboxId, SandboxPhase, Vmid
from pvecri.network.manager import NetworkManager
from pvecri.oci import features
from pvecri.pods.hooks import Hooks
from pvecri.pods.manager import PodManager
from pvecri.pods.store import Store
from pvecri.proxmox.api import ProxmoxApi

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the run directory is mounted")

EXITED_CONTAINERS = 2


def config(directory: Path) -> Config:
    return Config(
        runtime=RuntimeConfig(state_dir=directory / "state", run_dir=directory / "run"),
        oci=OciConfig(enabled=False),
        images=ImagesConfig(root=directory / "images"),
        network=NetworkConfig(conf_dir=directory / "net.d", cache_dir=directory / "cni"),
    )


def fill(path: Path, pods: int) -> None:
    """What a daemon leaves that has stopped its pods: their containers have exited."""
    store = Store(path)
    blank, container = filled(Sandbox), filled(Container)
    for number in range(pods):
        metadata = replace(blank.config.metadata, name=f"pod-{number}")
        pod = replace(
            blank,
            id=SandboxId(f"{number:064x}"),
            config=replace(blank.config, metadata=metadata),
            phase=SandboxPhase.STOPPED,
            vmid=Vmid(0),
            warm=None,
            front=None,
            removed=False,
        )
        store.save_sandbox(pod)
        for index in range(EXITED_CONTAINERS):
            name = replace(container.config.metadata, name=f"c{index}")
            store.save_container(
                replace(
                    container,
                    id=ContainerId(f"{number:032x}{index:032x}"),
                    sandbox_id=pod.id,
                    config=replace(container.config, metadata=name),
                    state=ContainerState.EXITED,
                    front=None,
                )
            )
    store.close()


@asynccontextmanager
async def pod_manager(directory: Path, pods: int) -> AsyncIterator[PodManager]:
    """A manager of pods of an earlier daemon, not started yet; Proxmox does not answer it."""
    settings = config(directory)
    settings.runtime.state_dir.mkdir(parents=True)
    fill(settings.runtime.state_dir / "pods.db", pods)
    async with AsyncExitStack() as undo:
        undo.callback(mounts.umount_below, directory)
        proxmox = ProxmoxApi(settings.proxmox)
        images, network = ImageManager(settings), NetworkManager(settings.network)
        await images.start()
        undo.push_async_callback(images.close)
        await network.start()
        undo.push_async_callback(network.close)
        found = await features.discover(settings)
        manager = PodManager(settings, found, proxmox, images, network, Hooks())
        undo.push_async_callback(manager.close)
        yield manager


async def released(manager: PodManager) -> None:
    """Wait until what the exited containers used is released."""
    async with asyncio.timeout(60):
        for container in manager.registry.containers():
            await container.released.wait()


async def opens_of_a_start(directory: Path, pods: int) -> list[str]:
    async with pod_manager(directory, pods) as manager:
        with opened.recorded() as paths:
            await manager.start()
            assert not any(each.watcher for each in manager.registry.containers()), "releases wait for the answer"
            manager.attend()
            await released(manager)
    return paths


async def test_mount_table_is_read_as_often_for_many_pods_as_for_few(tmp_path: Path) -> None:
    few, many = [await opens_of_a_start(tmp_path / str(pods), pods) for pods in (2, 40)]
    assert few.count(opened.MOUNT_TABLE) == many.count(opened.MOUNT_TABLE) == 1
