# SPDX-License-Identifier: Apache-2.0
"""Which running CTs of ended pods are stopped, and how often is tried."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

import pytest
from msgspec.structs import replace

from pvecri.model import Sandbox, SandboxConfig, SandboxId, SandboxMetadata, SandboxPhase, Vmid
from pvecri.observability.metrics_registry import REGISTRY
from pvecri.pods.registry import PodEntry, Registry
from pvecri.pods.sandbox.ct import SandboxCts
from pvecri.pods.sandbox.ct_ownership import NotOwnCt
from pvecri.pods.sandbox.ct_restarts import RestartedCts
from pvecri.pods.store import Store
from pvecri.proxmox.errors import CtLocked
from pvecri.supervision import Incomplete


class Node:
    """Pods whose CTs all run, and the tries to stop them."""

    def __init__(self, directory: Path) -> None:
        self.registry = Registry(Store(directory / "pods.db"), directory)
        self.restarted = RestartedCts(self.registry, cast(SandboxCts, self))
        self.running: set[int] = set()
        self.tried: list[int] = []
        self.errors: dict[int, Exception] = {}

    def pod(self, number: int, phase: SandboxPhase = SandboxPhase.STOPPED) -> PodEntry:
        config = SandboxConfig(metadata=SandboxMetadata(name=f"web-{number}", namespace="shop", uid="a1"))
        vmid = Vmid(900_000 + number)
        self.running.add(vmid)
        return self.registry.add_pod(
            Sandbox(id=SandboxId(f"{number:064x}"), config=config, created_at=1, phase=phase, vmid=vmid)
        )

    def runs(self, pod: PodEntry) -> bool:
        return pod.value.vmid in self.running

    async def stop_again(self, pod: PodEntry) -> None:
        self.tried.append(pod.value.vmid)
        if error := self.errors.get(pod.value.vmid):
            raise error
        self.running.discard(pod.value.vmid)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def counted() -> float:
    return REGISTRY.get_sample_value("pvecri_ct_changes_total", {"kind": "started"}) or 0.0


async def test_only_cts_of_ended_pods_are_stopped(node: Node) -> None:
    before = counted()
    for number, phase in enumerate(SandboxPhase):
        node.pod(number, phase)
    await node.restarted.stop_all()
    stopped = list(SandboxPhase).index(SandboxPhase.STOPPED)
    assert node.tried == [900_000 + stopped]
    assert counted() - before == 1


async def test_ct_that_is_not_the_pods_any_more_is_left_and_asked_for_once(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.pod(1)
    node.errors[900_001] = NotOwnCt("CT 900001 does not belong to pod web-1")
    for _ in range(3):
        await node.restarted.stop_all()
    assert node.tried == [900_001]
    assert caplog.text.count("it runs, and is left as it is") == 1


async def test_ct_that_cannot_be_stopped_is_tried_again_and_keeps_no_other_running(node: Node) -> None:
    node.pod(1)
    node.pod(2)
    node.errors[900_001] = CtLocked("stop CT 900001", "CT is locked (backup)")
    with pytest.raises(Incomplete, match=r"CT is locked \(backup\)"):
        await node.restarted.stop_all()
    assert node.running == {900_001}
    node.errors.clear()
    await node.restarted.stop_all()
    assert node.running == set()


async def test_ct_of_a_pod_that_is_removed_meanwhile_is_left_to_the_removal(node: Node) -> None:
    pod = node.pod(1)
    async with pod.lock:
        search = asyncio.create_task(node.restarted.stop_all())
        await asyncio.sleep(0)
        node.registry.save_pod(pod, replace(pod.value, phase=SandboxPhase.REMOVING))
    await search
    assert node.tried == []
