# SPDX-License-Identifier: Apache-2.0
"""Additions of CNI specification 1.1: STATUS, GC, plugins from a directory. The plugins are scripts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from support.netns import own_network_namespace

from pvecri.config.settings import NetworkConfig
from pvecri.model import SandboxConfig, SandboxId, SandboxMetadata
from pvecri.network import manager as network_manager
from pvecri.network import probe
from pvecri.network.errors import PluginError
from pvecri.network.manager import NetworkManager

SANDBOX_ID = SandboxId("8d" * 32)
OTHER_ID = SandboxId("9e" * 32)
SANDBOX = SandboxConfig(metadata=SandboxMetadata(name="web", namespace="default", uid="42"))

MODERN = """#!/bin/sh
echo "$CNI_COMMAND $CNI_CONTAINERID" >> "${0%/*}/log"; cat > "$0.$CNI_COMMAND.json"
case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}' ;;
STATUS) [ ! -e "$0.broken" ] || { echo '{"code":50,"msg":"no agent"}'; exit 1; } ;;
ADD) echo '{"cniVersion":"1.1.0","ips":[{"address":"10.0.0.9/24"}]}' ;;
esac
"""
OLD = MODERN.replace(',"1.1.0"]', "]")


@pytest.fixture(autouse=True)
def node() -> Iterator[None]:
    with own_network_namespace():
        yield


@pytest.fixture
def config(tmp_path: Path) -> NetworkConfig:
    for name in ("net.d", "bin"):
        (tmp_path / name).mkdir()
    return NetworkConfig(conf_dir=tmp_path / "net.d", bin_dirs=(tmp_path / "bin",), cache_dir=tmp_path / "cache")


@pytest.fixture
async def manager(config: NetworkConfig) -> AsyncIterator[NetworkManager]:
    network_manager = NetworkManager(config)
    await network_manager.start()
    yield network_manager
    await network_manager.close()


def install(config: NetworkConfig, script: str = MODERN, version: str = "1.1.0", **more: object) -> Path:
    """A network of one plugin; returns the plugin's path."""
    program = config.bin_dirs[0] / "agent"
    program.write_text(script)
    program.chmod(0o755)
    conflist = {"cniVersion": version, "name": "pods", "plugins": [{"type": "agent"}], **more}
    (config.conf_dir / "10-pods.conflist").write_text(json.dumps(conflist))
    return program


def calls(config: NetworkConfig) -> list[str]:
    """The commands that the plugin was given, with the sandbox's id, in order."""
    log = config.bin_dirs[0] / "log"
    return [line.strip() for line in log.read_text().splitlines()] if log.exists() else []


async def test_readiness_is_the_plugins_status(manager: NetworkManager, config: NetworkConfig) -> None:
    program = install(config)
    program.with_name("agent.broken").touch()

    status = await manager.status()

    assert (status.ready, status.reason) == (False, "NetworkPluginNotReady")
    assert status.message.endswith("STATUS: no agent")
    assert "10-pods.conflist" in status.message


async def test_plugin_status_is_cached_until_the_network_changes(
    manager: NetworkManager, config: NetworkConfig
) -> None:
    install(config)
    assert [(await manager.status()).ready for _ in range(3)] == [True, True, True]
    assert calls(config) == ["VERSION", "STATUS"]

    install(config, disableGC=True)

    assert (await manager.status()).ready
    assert calls(config) == ["VERSION", "STATUS"] * 2


async def test_version_is_asked_once_of_each_program(
    manager: NetworkManager, config: NetworkConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "MAX_AGE", 0.0)

    async def wait_for_calls(*wanted: str) -> None:
        async with asyncio.timeout(30):
            while (found := calls(config)[: len(wanted)]) != list(wanted):
                assert found == list(wanted[: len(found)])
                assert (await manager.status()).ready
                await asyncio.sleep(0.001)

    install(config)
    await wait_for_calls("VERSION", "STATUS", "STATUS", "STATUS")

    program = config.bin_dirs[0] / "agent"
    upgraded = program.with_name("agent.new")
    upgraded.write_text(MODERN)
    upgraded.chmod(0o755)
    (config.bin_dirs[0] / "log").unlink()
    upgraded.replace(program)

    async with asyncio.timeout(30):
        while "VERSION" not in calls(config):
            assert (await manager.status()).ready
            await asyncio.sleep(0.001)


async def test_program_that_is_too_old_is_asked_again(
    manager: NetworkManager, config: NetworkConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may execute another one, which an upgrade replaces."""
    monkeypatch.setattr(probe, "MAX_AGE", 0.0)
    install(config, OLD)

    async with asyncio.timeout(30):
        while calls(config).count("VERSION") < 2:
            assert not (await manager.status()).ready
            await asyncio.sleep(0.001)


async def test_cached_status_is_returned_during_a_refresh(
    manager: NetworkManager, config: NetworkConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = install(config)
    assert (await manager.status()).ready
    program.with_name("agent.broken").touch()
    monkeypatch.setattr(probe, "MAX_AGE", 0.0)

    assert (await manager.status()).ready
    async with asyncio.timeout(30):
        while (await manager.status()).ready:
            await asyncio.sleep(0)

    assert "no agent" in (await manager.status()).message


async def test_concurrent_callers_share_one_status(manager: NetworkManager, config: NetworkConfig) -> None:
    install(config)

    found = await asyncio.gather(*(manager.status() for _ in range(5)))

    assert all(status.ready for status in found)
    assert calls(config) == ["VERSION", "STATUS"]


async def test_plugin_without_the_networks_version_is_named(
    manager: NetworkManager, config: NetworkConfig
) -> None:
    install(config, OLD)

    status = await manager.status()

    assert not status.ready
    assert "agent" in status.message
    assert "does not support the network's cniVersion 1.1.0; it supports 1.0.0" in status.message


async def test_older_networks_have_no_status_or_gc(manager: NetworkManager, config: NetworkConfig) -> None:
    install(config, version="1.0.0")

    assert (await manager.status()).ready
    await manager.collect_garbage([])

    assert calls(config) == []


async def test_gc_releases_attachments_of_unknown_pods(
    manager: NetworkManager, config: NetworkConfig, netns: Path
) -> None:
    program = install(config)
    await manager.attach(SANDBOX_ID, netns, manager.request_of(SANDBOX))
    await manager.attach(OTHER_ID, netns, manager.request_of(SANDBOX))

    await manager.collect_garbage([SANDBOX_ID])

    assert calls(config)[2:] == [f"DEL {OTHER_ID}", "GC"]
    told = json.loads(program.with_name("agent.GC.json").read_text())
    assert told == {
        "type": "agent",
        "name": "pods",
        "cniVersion": "1.1.0",
        "cni.dev/valid-attachments": [{"containerID": SANDBOX_ID, "ifname": "eth0"}],
    }


async def test_disable_gc_is_respected(manager: NetworkManager, config: NetworkConfig, netns: Path) -> None:
    install(config, disableGC=True)
    await manager.attach(OTHER_ID, netns, manager.request_of(SANDBOX))

    await manager.collect_garbage([])

    assert calls(config) == [f"ADD {OTHER_ID}", f"DEL {OTHER_ID}"]


async def test_failed_gc_has_the_plugins_message(manager: NetworkManager, config: NetworkConfig) -> None:
    install(config, MODERN.replace("STATUS)", "GC) echo nonsense >&2; exit 4 ;;\nSTATUS)"))

    with pytest.raises(PluginError, match="GC: ended with status 4: nonsense"):
        await manager.collect_garbage([])


async def test_plugins_of_the_networks_directory_run_after_those_of_the_list(
    manager: NetworkManager, config: NetworkConfig, netns: Path
) -> None:
    program = install(config)
    folder = config.conf_dir / "pods"
    folder.mkdir()
    program.with_name("more").symlink_to(program)
    (folder / "50-more.conf").write_text('{"type": "more"}')

    await manager.attach(SANDBOX_ID, netns, manager.request_of(SANDBOX))
    (folder / "50-more.conf").unlink()
    await manager.detach(SANDBOX_ID, netns, SANDBOX)

    assert json.loads(program.with_name("more.ADD.json").read_text())["prevResult"]
    assert program.with_name("more.DEL.json").exists()


async def test_load_only_inlined_plugins_is_respected(
    manager: NetworkManager, config: NetworkConfig, netns: Path
) -> None:
    program = install(config, loadOnlyInlinedPlugins=True)
    (config.conf_dir / "pods").mkdir()
    (config.conf_dir / "pods" / "50-more.conf").write_text('{"type": "missing"}')

    await manager.attach(SANDBOX_ID, netns, manager.request_of(SANDBOX))

    assert (await manager.status()).ready
    assert not program.with_name("missing.ADD.json").exists()


async def test_gc_spares_a_network_in_which_another_runtime_has_pods(
    manager: NetworkManager, config: NetworkConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(config)
    monkeypatch.setattr(network_manager, "RESULTS_OF_OTHERS", tmp_path)

    (tmp_path / f"pods-{OTHER_ID}-eth0").touch()
    await manager.collect_garbage([])
    spared = calls(config)
    (tmp_path / f"pods-{OTHER_ID}-eth0").rename(tmp_path / f"others-{OTHER_ID}-eth0")
    await manager.collect_garbage([])

    assert (spared, calls(config)) == ([], ["GC"])
