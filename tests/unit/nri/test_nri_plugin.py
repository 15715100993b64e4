# SPDX-License-Identifier: Apache-2.0
"""The calls and events of NRI's service, the split of Synchronize, and the discovery of plugins."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path
from typing import cast

import pytest

from pvecri.config.settings import ConfigError, NriConfig
from pvecri.nri import launcher
from pvecri.nri.frames import MAX_DATA
from pvecri.nri.plugin import CALLS, VALID_EVENTS, _name_of, split
from pvecri.nri.plugins import Plugins
from pvecri.nri.proto import nri_pb2 as pb
from pvecri.pods.manager import PodManager

NO_PODS = cast(PodManager, None)
"""The Pod Manager is not used before a plugin connects."""


def test_every_event_has_a_call() -> None:
    events = {value for name, value in pb.Event.items() if name not in ("UNKNOWN", "LAST")}
    assert {call.event for call in CALLS.values()} == events
    assert sum(1 << (event - 1) for event in events) == VALID_EVENTS


def test_state_change_replaces_only_calls_with_empty_responses() -> None:
    assert {call.method for call in CALLS.values() if not call.notification} == {
        *("CreateContainer", "UpdateContainer", "StopContainer", "UpdatePodSandbox", "ValidateContainerAdjustment")
    }


@pytest.mark.parametrize(
    ("code", "name"), [(4, "DEADLINE_EXCEEDED"), (12, "UNIMPLEMENTED"), (99, "UNKNOWN"), (-1, "UNKNOWN")]
)
def test_every_status_of_a_plugin_is_counted_by_a_known_name(code: int, name: str) -> None:
    assert _name_of(code) == name


@pytest.mark.parametrize("size", [0, 100, 70_000, MAX_DATA - 10_000])
def test_synchronize_is_split_below_the_message_limit(size: int) -> None:
    pods = [pb.PodSandbox(id=str(number), name="x" * size) for number in range(5)]
    containers = [pb.Container(id=str(number), name="x" * size) for number in range(70)]
    requests = list(split(pods, containers))
    assert all(request.ByteSize() <= MAX_DATA for request in requests)
    assert [request.more for request in requests] == [True] * (len(requests) - 1) + [False]
    assert [each.id for request in requests for each in request.pods] == [pod.id for pod in pods]
    assert [each.id for request in requests for each in request.containers] == [each.id for each in containers]


def test_preinstalled_plugins_are_discovered_in_order(tmp_path: Path) -> None:
    for name, mode in (("20-b", 0o755), ("10-a", 0o755), ("30-not-executable", 0o644), ("badly-named", 0o755)):
        (tmp_path / name).touch(mode=mode)
        (tmp_path / name).chmod(mode)
    (tmp_path / "a.conf").write_text("general")
    (tmp_path / "b.conf").write_text("general")
    (tmp_path / "20-b.conf").write_text("special")
    found = launcher.discover(NriConfig(plugin_dir=tmp_path, plugin_config_dir=tmp_path))
    assert [(each.index, each.name, each.configuration) for each in found] == [
        ("10", "a", "general"),
        ("20", "b", "special"),
    ]


async def test_socket_in_use_is_not_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "nri.sock"
    plugins = Plugins(NriConfig(socket=path, plugin_dir=tmp_path))
    async with await asyncio.start_unix_server(lambda *_: None, path):
        with pytest.raises(ConfigError, match=r"nri\.socket: another process listens"):
            await plugins.start(NO_PODS)
    await plugins.start(NO_PODS)  # it is stale now
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    await plugins.close()
    assert not path.exists()


async def test_unusable_socket_path_is_a_config_error(tmp_path: Path) -> None:
    plugins = Plugins(NriConfig(socket=tmp_path / ("long" * 40), plugin_dir=tmp_path))
    with pytest.raises(ConfigError, match=r"nri\.socket: .*long"):
        await plugins.start(NO_PODS)


def test_missing_plugin_dir_has_no_plugins(tmp_path: Path) -> None:
    assert launcher.discover(NriConfig(plugin_dir=tmp_path / "missing")) == []
