# SPDX-License-Identifier: Apache-2.0
"""Which changes of a CT in Proxmox are noticed and put back, and with how many requests."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs

import pytest
from msgspec.structs import replace
from support.scripted_pve import ScriptedPve, data, refusal, scripted_pve

from pvecri.config.settings import ProxmoxConfig
from pvecri.linux.processes import Process
from pvecri.model import Sandbox, SandboxConfig, SandboxId, SandboxMetadata, SandboxPhase, Vmid
from pvecri.pods.registry import PodEntry, Registry
from pvecri.pods.sandbox.ct import SandboxCts
from pvecri.pods.sandbox.ct_settings import CtSettings
from pvecri.pods.store import Store
from pvecri.proxmox import ct_options
from pvecri.proxmox.answers import CtConfig, CtEntry
from pvecri.proxmox.api import ProxmoxApi
from pvecri.supervision import Incomplete

MIB = 1 << 20
OPTIONS = {"hostname": "web-0", "memory": "97", "swap": "0", "cpulimit": "1.5", "cpuunits": "39"}
ENTRY = {"name": "web-0", "cpus": 1.5, "maxmem": 97 * MIB, "maxswap": "0", "tags": "pvecri"}
CONFIG = {"hostname": "web-0", "memory": 97, "swap": 0, "cpulimit": 1.5, "cpuunits": 39, "tags": "pvecri"}
LIST = "/nodes/pve/lxc"


@dataclass
class Cts:
    """The CPU weight of every CT's cgroup."""

    weight: int | None = 39

    def cpu_weight(self, pod: PodEntry) -> int | None:
        return self.weight

    def notes(self, pod: PodEntry) -> str:
        return f"those of {pod.value.name}"


class Node:
    """A node with pods, and its answers."""

    def __init__(self, server: ScriptedPve, api: ProxmoxApi, directory: Path) -> None:
        self.server, self.cts = server, Cts()
        self.registry = Registry(Store(directory / "pods.db"), directory)
        self.settings = self.begin(api)
        self.api = api

    def begin(self, api: ProxmoxApi) -> CtSettings:
        return CtSettings(self.registry, api, cast(SandboxCts, self.cts), ProxmoxConfig())

    def run_pod(self, number: int, **values: Any) -> PodEntry:
        """A READY pod, CT 900000 and `number`; this process is its init."""
        name = SandboxMetadata(name=f"web-{number}", namespace="shop", uid="a1")
        sandbox = Sandbox(
            id=SandboxId(f"{number:064x}"),
            config=SandboxConfig(metadata=name),
            created_at=time.time_ns(),
            phase=SandboxPhase.READY,
            vmid=Vmid(900_000 + number),
            ct_options=OPTIONS,
            tagged=True,
        )
        pod = self.registry.add_pod(replace(sandbox, **values))
        pod.init = Process(os.getpid())
        return pod

    def show(self, *entries: dict[str, object]) -> None:
        """What the list of CTs shows from now on, of CT 900000 and those after it."""
        listed = [{"vmid": 900_000 + number, **ENTRY, **entry} for number, entry in enumerate(entries)]
        self.server.script("GET", LIST, data(listed))

    def configured(self, number: int, **changes: object) -> None:
        """A CT's config from now on, and that it can be changed."""
        path = f"{LIST}/{900_000 + number}/config"
        notes = f"sandbox: {number:064x}\n"
        self.server.script("GET", path, data(CONFIG | {"description": notes} | changes))
        self.server.script("PUT", path, data(None))

    def put(self) -> list[dict[str, list[str]]]:
        """The parameters of the changes that were made."""
        return [parse_qs(each.body.decode()) for each in self.server.received if each.method == "PUT"]

    def requests(self) -> list[str]:
        return [f"{each.method} {each.path}" for each in self.server.received]


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with scripted_pve() as server:
        api = ProxmoxApi(server.config(tmp_path))
        await api.start()
        node = Node(server, api, tmp_path)
        yield node
        for pod in node.registry.pods():
            if pod.init is not None:
                pod.init.close()
        await api.close()


async def test_look_at_unchanged_cts_is_one_request(node: Node) -> None:
    node.run_pod(0)
    node.run_pod(1)
    node.show({}, {})
    for _ in range(3):
        await node.settings.look()
    assert node.requests() == [f"GET {LIST}"] * 3


async def test_node_without_pods_is_not_asked(node: Node) -> None:
    node.run_pod(0, phase=SandboxPhase.STOPPED)
    await node.settings.look()
    assert node.requests() == []


@pytest.mark.parametrize(
    ("entry", "config", "put"),
    [
        ({"maxmem": 512 * MIB}, {"memory": 512}, {"memory": "97"}),
        ({"maxswap": 64 * MIB}, {"swap": 64}, {"swap": "0"}),
        ({"cpus": 1}, {"cores": 1}, {"delete": "cores"}),
        ({"cpus": "2"}, {"cpulimit": "2"}, {"cpulimit": "1.5"}),
        ({"name": "database"}, {"hostname": "database"}, {"hostname": "web-0"}),
        ({"tags": "gold"}, {"tags": "gold"}, {"tags": "pvecri;gold"}),
        ({"maxmem": MIB}, {"memory": 1, "cpuunits": 7}, {"memory": "97", "cpuunits": "39"}),
    ],
)
async def test_change_that_the_list_shows_is_put_back(
    node: Node, entry: dict[str, object], config: dict[str, object], put: dict[str, str]
) -> None:
    node.run_pod(0)
    node.show(entry)
    node.configured(0, **config)
    await node.settings.look()
    assert node.put() == [{name: [value] for name, value in put.items()}]


async def test_changed_cpu_weight_is_put_back_and_the_next_look_is_one_request(node: Node) -> None:
    node.run_pod(0)
    node.show({})
    await node.settings.look()
    node.cts.weight = 1000
    node.configured(0, cpuunits=1000)
    await node.settings.look()
    assert node.put() == [{"cpuunits": ["39"]}]
    before = len(node.requests())
    await node.settings.look()
    assert node.requests()[before:] == [f"GET {LIST}"]


async def test_notes_without_the_pod_are_put_back_if_the_config_is_read(node: Node) -> None:
    pod = node.run_pod(0)
    node.show({"maxmem": MIB})
    node.configured(0, memory=1, description="the shop's database")
    await node.settings.look()
    assert node.put() == [{"memory": ["97"], "description": [f"those of {pod.value.name}"]}]


async def test_tag_of_somebody_else_costs_no_request(node: Node) -> None:
    node.run_pod(0)
    node.show({"tags": "gold;pvecri"})
    await node.settings.look()
    assert node.requests() == [f"GET {LIST}"]


async def test_config_that_is_as_it_should_be_is_read_once(node: Node) -> None:
    """As if Proxmox counted the node's CPUs in another way."""
    node.run_pod(0, ct_options=OPTIONS | {"cpulimit": "0"})
    node.show({"cpus": 4096})
    node.configured(0, cpulimit=0)
    await node.settings.look()
    await node.settings.look()
    assert node.requests() == [f"GET {LIST}", f"GET {LIST}/900000/config", f"GET {LIST}"]


async def test_cts_of_the_last_daemon_process_are_read_one_in_each_look(node: Node) -> None:
    for number in range(2):
        node.run_pod(number)
        node.configured(number, cpuunits=39 + number)
    node.show({}, {})
    settings = node.begin(node.api)
    for _ in range(3):
        await settings.look()
    configs = [f"GET {LIST}/900000/config", f"GET {LIST}/900001/config"]
    assert [each for each in node.requests() if each.startswith("GET") and each != f"GET {LIST}"] == configs
    assert node.put() == [{"cpuunits": ["39"]}]


@pytest.mark.parametrize("reason", ["lock", "call", "stopped", "older version"])
async def test_ct_that_is_busy_or_not_the_pods_is_left(node: Node, reason: str) -> None:
    pod = node.run_pod(0, ct_options={} if reason == "older version" else OPTIONS)
    node.show({"maxmem": MIB, **({"lock": "backup"} if reason == "lock" else {})})
    if reason == "call":
        await pod.lock.acquire()
    if reason == "stopped":
        node.registry.save_pod(pod, replace(pod.value, phase=SandboxPhase.STOPPED))
    await node.settings.look()
    assert {each.split()[0] for each in node.requests()} <= {"GET"}
    assert f"GET {LIST}/900000/config" not in node.requests()


async def test_change_that_is_made_again_and_again_is_one_warning(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.run_pod(0)
    node.show({"maxmem": 512 * MIB})
    node.configured(0, memory=512)
    for _ in range(3):
        node.settings._in_order.clear()
        await node.settings.look()
    assert len(node.put()) == 3
    assert [each.levelname for each in caplog.records if "put back" in each.getMessage()].count("WARNING") == 1


async def test_one_ct_that_cannot_be_changed_does_not_keep_the_others_from_it(node: Node) -> None:
    for number in range(2):
        node.run_pod(number)
        node.configured(number, memory=1)
    node.show({"maxmem": MIB}, {"maxmem": MIB})
    node.server.script("PUT", f"{LIST}/900000/config", refusal(500, "unable to hotplug memory"))
    with pytest.raises(Incomplete, match="unable to hotplug memory"):
        await node.settings.look()
    assert node.server.count("PUT", f"{LIST}/900001/config") == 1


async def test_running_ct_that_is_not_listed_is_an_error(node: Node) -> None:
    node.run_pod(0)
    node.show()
    with pytest.raises(Incomplete, match=r"CT 900000 of pod web-0_.* runs, but Proxmox does not list it"):
        await node.settings.look()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (CONFIG, {}),
        (CONFIG | {"cpulimit": "1.50"}, {}),
        ({name: CONFIG[name] for name in ("hostname", "memory", "cpulimit", "cpuunits")}, {}),  # no swap is none
        (CONFIG | {"memory": 98}, {"memory": "97"}),
        ({"hostname": "web-0", "memory": 97, "cpulimit": 1.5}, {"cpuunits": "39"}),
        (CONFIG | {"onboot": 1, "mp0": "local:1,mp=/data", "net0": "name=eth1"}, {}),
    ],
)
def test_changes(config: dict[str, object], expected: dict[str, object]) -> None:
    raw = {name: str(value) for name, value in config.items()}
    assert ct_options.changes(CtConfig(raw=raw), OPTIONS) == expected


@pytest.mark.parametrize(
    ("found", "own", "expected"),
    [
        ("", ("pvecri",), "pvecri"),
        ("pvecri", ("pvecri",), ""),
        ("a;pvecri", ("pvecri",), ""),
        ("a,b", ("pvecri", "b"), "pvecri;b;a"),
        ("a", (), ""),
    ],
)
def test_missing_tags(found: str, own: tuple[str, ...], expected: str) -> None:
    assert ct_options.missing_tags(found, own) == expected


@pytest.mark.parametrize(("cpus", "differs"), [(8.0, False), (2.0, True)])
def test_entry_of_a_ct_without_a_limit_shows_the_nodes_cpus(cpus: float, differs: bool) -> None:
    entry = CtEntry(vmid=Vmid(900_000), name="web-0", cpus=cpus, maxmem=97 * MIB)
    assert ct_options.entry_differs(entry, OPTIONS | {"cpulimit": "0"}, 8) is differs
