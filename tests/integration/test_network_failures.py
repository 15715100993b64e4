# SPDX-License-Identifier: Apache-2.0
"""The Network Manager if plugins fail; the failing plugins are shell scripts."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
from support import figures
from support.netns import own_network_namespace

from pvecri.config.settings import NetworkConfig
from pvecri.model import SandboxConfig, SandboxId, SandboxMetadata
from pvecri.network.attachment import AttachmentStore
from pvecri.network.errors import PluginError
from pvecri.network.manager import NetworkManager

SANDBOX_ID = SandboxId("7c" * 32)
SANDBOX = SandboxConfig(metadata=SandboxMetadata(name="web", namespace="default", uid="42"))

RECORD = 'echo "$CNI_COMMAND ${0##*/} ${CNI_NETNS:+netns}" >> "${0%/*}/log"\n'
FAILS_ON_ADD = (
    f"#!/bin/sh\n{RECORD}cat > /dev/null\n"
    """[ "$CNI_COMMAND" = ADD ] || exit 0
echo '{"cniVersion":"1.0.0","code":11,"msg":"no more ports","details":"asked for 80"}'; exit 1
"""
)
ANSWERS = f"""#!/bin/sh\n{RECORD}cat > "$0.$CNI_COMMAND.json"; echo '{{"cniVersion":"1.0.0"}}'\n"""
HANGS = (
    f"#!/bin/sh\n{RECORD}[ $CNI_COMMAND = ADD ] || exit 0\nsleep 1000 & echo $! > $0.pid; echo on > $0.on; wait\n"
)


@pytest.fixture(autouse=True)
def node() -> Iterator[None]:
    with own_network_namespace():
        yield


@pytest.fixture
def config(tmp_path: Path) -> NetworkConfig:
    for name in ("net.d", "bin"):
        (tmp_path / name).mkdir()
    return NetworkConfig(
        conf_dir=tmp_path / "net.d",
        bin_dirs=(tmp_path / "bin", Path("/usr/lib/cni")),
        cache_dir=tmp_path / "cache",
    )


@pytest.fixture
async def manager(config: NetworkConfig) -> AsyncIterator[NetworkManager]:
    network_manager = NetworkManager(config)
    await network_manager.start()
    yield network_manager
    await network_manager.close()


def install(config: NetworkConfig, **plugins: str) -> None:
    """Make these plugins, by name and script, and a network of them, in order."""
    for name, script in plugins.items():
        program = config.bin_dirs[0] / name
        program.write_text(script)
        program.chmod(0o755)
    write_network(config, [{"type": name} for name in plugins])


def write_network(config: NetworkConfig, plugins: list[dict[str, object]]) -> None:
    conflist = {"cniVersion": "1.0.0", "name": "pods", "plugins": plugins}
    (config.conf_dir / "10-pods.conflist").write_text(json.dumps(conflist))


def recorded(config: NetworkConfig) -> list[SandboxId]:
    """The sandboxes with an attachment on record."""
    return AttachmentStore(config.cache_dir).sandboxes()


def calls(config: NetworkConfig) -> list[str]:
    """The commands that the plugins were given, in order."""
    return [line.strip() for line in (config.bin_dirs[0] / "log").read_text().splitlines()]


async def test_error_has_the_plugins_message_name_and_file(
    manager: NetworkManager, config: NetworkConfig, netns: Path
) -> None:
    install(config, failing=FAILS_ON_ADD)

    with pytest.raises(
        PluginError, match=r"failing \(.*10-pods\.conflist\): ADD: no more ports; asked for 80"
    ) as error:
        await manager.attach(SANDBOX_ID, netns, manager.request_of(SANDBOX))

    assert error.value.code == 11


async def test_a_failed_add_is_undone_in_reverse(
    manager: NetworkManager, config: NetworkConfig, netns: Path
) -> None:
    install(config, first=ANSWERS, second=FAILS_ON_ADD, third=ANSWERS)

    with pytest.raises(PluginError):
        await manager.attach(SANDBOX_ID, netns, manager.request_of(SANDBOX))

    assert calls(config) == [
        "ADD first netns",
        "ADD second netns",
        "DEL third netns",
        "DEL second netns",
        "DEL first netns",
    ]
    assert recorded(config) == []


async def test_failed_add_leaves_no_ipam_allocation(
    manager: NetworkManager, config: NetworkConfig, tmp_path: Path, netns: Path
) -> None:
    install(config, failing=FAILS_ON_ADD)
    ipam = {"type": "host-local", "dataDir": str(tmp_path / "leases"), "subnet": "10.213.9.0/24"}
    write_network(config, [{"type": "bridge", "bridge": "pvtest0", "ipam": ipam}, {"type": "failing"}])

    with pytest.raises(PluginError, match="no more ports"):
        await manager.attach(SANDBOX_ID, netns, manager.request_of(SANDBOX))

    assert not list((tmp_path / "leases").glob("pods/10.*"))


async def test_failed_undo_is_retried_by_a_later_detach(
    manager: NetworkManager, config: NetworkConfig, netns: Path
) -> None:
    install(config, broken="#!/bin/sh\ncat > /dev/null; echo so it goes >&2; exit 3\n")
    with pytest.raises(PluginError, match=r"ADD: ended with status 3: so it goes"):
        await manager.attach(SANDBOX_ID, netns, manager.request_of(SANDBOX))
    assert recorded(config) == [SANDBOX_ID]

    with pytest.raises(PluginError, match="DEL: "):
        await manager.detach(SANDBOX_ID, netns, SANDBOX)
    install(config, broken=ANSWERS)
    await manager.detach(SANDBOX_ID, netns, SANDBOX)

    assert recorded(config) == []


async def test_detach_stops_at_a_plugin_that_fails(
    manager: NetworkManager, config: NetworkConfig, netns: Path
) -> None:
    install(config, first=ANSWERS, second=ANSWERS)
    await manager.attach(SANDBOX_ID, netns, manager.request_of(SANDBOX))
    install(config, second="#!/bin/sh\nexit 1\n")

    with pytest.raises(PluginError, match=r"second .*: DEL: ended with status 1: no output"):
        await manager.detach(SANDBOX_ID, netns, SANDBOX)

    assert calls(config) == ["ADD first netns", "ADD second netns"]
    assert recorded(config) == [SANDBOX_ID]


async def test_a_plugin_that_hangs_is_killed_with_its_children(config: NetworkConfig, netns: Path) -> None:
    install(config, hanging=HANGS)
    manager = NetworkManager(msgspec.structs.replace(config, plugin_timeout=1.0))
    await manager.start()

    where = {"plugin": "hanging", "command": "ADD", "code": "DEADLINE_EXCEEDED"}
    before = figures.value("cni_calls_total", **where)
    with pytest.raises(PluginError, match=r"killed after 1 s \(network\.plugin_timeout\)"):
        await manager.attach(SANDBOX_ID, netns, manager.request_of(SANDBOX))
    assert figures.value("cni_calls_total", **where) == before + 1

    assert await has_ended(int((config.bin_dirs[0] / "hanging.pid").read_text()))


async def test_child_of_a_plugin_that_keeps_stdout_in_its_own_session_is_killed_on_timeout(
    config: NetworkConfig, netns: Path
) -> None:
    install(config, leaving="#!/bin/sh\n[ $CNI_COMMAND = ADD ] || exit 0\nsetsid sleep 1000 & echo $! > $0.pid\n")
    manager = NetworkManager(msgspec.structs.replace(config, plugin_timeout=1.0))
    await manager.start()

    with pytest.raises(PluginError, match=r"killed after 1 s \(network\.plugin_timeout\)"):
        await manager.attach(SANDBOX_ID, netns, manager.request_of(SANDBOX))

    assert await has_ended(int((config.bin_dirs[0] / "leaving.pid").read_text()))


async def test_plugin_that_writes_gigabytes_is_killed(
    manager: NetworkManager, config: NetworkConfig, netns: Path
) -> None:
    install(config, endless="#!/bin/sh\n[ $CNI_COMMAND = ADD ] || exit 0\nexec head -c 3G /dev/zero\n")

    with pytest.raises(PluginError, match=r"endless .*: ADD: .* more than 4194304 bytes"):
        await manager.attach(SANDBOX_ID, netns, manager.request_of(SANDBOX))


async def test_a_cancelled_attach_is_undone(manager: NetworkManager, config: NetworkConfig, netns: Path) -> None:
    install(config, first=ANSWERS, hanging=HANGS)
    os.mkfifo(config.bin_dirs[0] / "hanging.on")
    attaching = asyncio.create_task(manager.attach(SANDBOX_ID, netns, manager.request_of(SANDBOX)))
    await asyncio.to_thread((config.bin_dirs[0] / "hanging.on").read_text)

    attaching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attaching

    assert calls(config)[2:] == ["DEL hanging netns", "DEL first netns"]
    assert recorded(config) == []
    assert await has_ended(int((config.bin_dirs[0] / "hanging.pid").read_text()))


async def test_error_for_a_missing_plugin_names_it_and_the_search_path(
    manager: NetworkManager, config: NetworkConfig, netns: Path
) -> None:
    write_network(config, [{"type": "no-such-plugin"}])
    searched = rf"{config.bin_dirs[0]}, /usr/lib/cni \(network\.bin_dirs\)"

    assert not (await manager.status()).ready
    with pytest.raises(PluginError, match=f"no-such-plugin .* not found in {searched}"):
        await manager.attach(SANDBOX_ID, netns, manager.request_of(SANDBOX))


async def test_invalid_result_is_an_error(manager: NetworkManager, config: NetworkConfig, netns: Path) -> None:
    install(config, silent="#!/bin/sh\ncat > /dev/null\n")

    with pytest.raises(PluginError, match=r"silent .* ADD: not a CNI result"):
        await manager.attach(SANDBOX_ID, netns, manager.request_of(SANDBOX))


async def test_plugin_gets_its_capabilities_and_the_previous_result(
    manager: NetworkManager, config: NetworkConfig, netns: Path
) -> None:
    install(config, first=ANSWERS, second=ANSWERS)
    write_network(config, [{"type": "first"}, {"type": "second", "capabilities": {"mac": True, "ips": False}}])
    annotations = {"network.pvecri.io/mac": "02:00:00:00:00:01", "network.pvecri.io/ips": "10.0.0.9/24"}
    sandbox = SandboxConfig(metadata=SANDBOX.metadata, annotations=annotations)

    await manager.attach(SANDBOX_ID, netns, manager.request_of(sandbox))
    await manager.detach(SANDBOX_ID, None, sandbox)

    added = json.loads((config.bin_dirs[0] / "second.ADD.json").read_text())
    deleted = json.loads((config.bin_dirs[0] / "first.DEL.json").read_text())
    previous = {"cniVersion": "1.0.0"}
    told = {"type": "second", "name": "pods", "cniVersion": "1.0.0", "prevResult": previous}
    assert added == {**told, "runtimeConfig": {"mac": "02:00:00:00:00:01"}}
    assert deleted == {"type": "first", "name": "pods", "cniVersion": "1.0.0", "prevResult": previous}
    assert calls(config) == ["ADD first netns", "ADD second netns", "DEL second", "DEL first"]


async def has_ended(pid: int) -> bool:
    """Whether a process is gone, or goes now; one that stays is killed."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    loop, gone = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(fd, gone.set)
    try:
        async with asyncio.timeout(10):
            await gone.wait()
    except TimeoutError:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        return False
    finally:
        loop.remove_reader(fd)
        os.close(fd)
    return True
