# SPDX-License-Identifier: AGPL-3.0-or-later
from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fakepve import PveError

from pvecri_embedded.api import create
from pvecri_embedded.api.base import Ct
from pvecri_embedded.identity import Identity
from pvecri_embedded.layout import Layout
from pvecri_embedded.node import EmbeddedNode


@pytest.fixture
def node(tmp_path: Path) -> EmbeddedNode:
    layout = Layout(tmp_path, "pve", tmp_path / "lxc")
    layout.make_directories()
    return EmbeddedNode(layout, Identity("token", "password"), host="127.0.0.1", port=0)


def new_ct(node: EmbeddedNode) -> Ct:
    return Ct(900, node=node.node, defaults=False, config={"lock": "create"})


async def test_reserved_vmid_has_a_config_with_only_its_lock(node: EmbeddedNode) -> None:
    await node.reserve(new_ct(node))
    assert node.layout.conf(900).read_text() == "lock: create\n"


async def test_create_times_out_if_another_task_has_the_lock(
    node: EmbeddedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(create, "LOCK_TIMEOUT_S", 0.0)
    await node.acquire(new_ct(node), "a destroy")
    with pytest.raises(PveError) as refused:
        await node.reserve(new_ct(node))
    locked = "can't lock file '/run/lock/lxc/pve-config-900.lock' - got timeout"
    assert (refused.value.status, refused.value.message) == (500, f"unable to create CT 900 - {locked}")


async def test_create_that_waited_for_the_configs_lock_finds_the_id_taken(node: EmbeddedNode) -> None:
    first = new_ct(node)
    await node.acquire(first, "a create")
    second = asyncio.create_task(node.reserve(new_ct(node)))
    await asyncio.sleep(0)
    node.cts.append(first)
    node.release(first, "a create")
    with pytest.raises(PveError) as refused:
        await second
    assert refused.value.message == "unable to create CT 900 - CT 900 already exists on node 'pve'"
