# SPDX-License-Identifier: Apache-2.0
"""CTs of removed pods: hidden from clients, destroyed in the background, a few at once, again after a failure."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest
from msgspec.structs import replace

from pvecri.errors import AlreadyExists, FailedPrecondition, NotFound
from pvecri.model import Sandbox, SandboxConfig, SandboxId, SandboxMetadata, SandboxPhase, Vmid
from pvecri.pods.events import EventKind
from pvecri.pods.registry import PodEntry, Registry
from pvecri.pods.sandbox.ct import SandboxCts
from pvecri.pods.sandbox.ct_removals import CONCURRENT, CtRemovals, Removal
from pvecri.pods.store import Store
from pvecri.proxmox.errors import CtLocked
from pvecri.supervision import Supervisor


def sandbox(number: int, name: str = "") -> Sandbox:
    metadata = SandboxMetadata(name=name or f"web-{number}", namespace="shop", uid="a1")
    return Sandbox(
        id=SandboxId(f"{number:064x}"),
        config=SandboxConfig(metadata=metadata),
        created_at=1,
        phase=SandboxPhase.STOPPED,
        vmid=Vmid(900_000 + number),
    )


class Node:
    """The CTs of a node whose destroys end when a test lets them, and the tries after a failure likewise."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.store = Store(directory / "pods.db")
        self.idle = asyncio.Event()
        self.idle.set()
        self.may_end = asyncio.Event()
        self.may_retry = asyncio.Event()
        self.errors: dict[int, Exception] = {}
        self.running = self.most = 0
        self.start()

    def start(self) -> None:
        """As a new daemon process does."""
        self.registry = Registry(self.store, self.directory)
        self.registry.load()
        self.supervisor = Supervisor(sleep=lambda _: self.may_retry.wait())
        self.removals = CtRemovals(self.registry, cast(SandboxCts, self), self.supervisor)
        self.removals.start()

    async def destroy(self, pod: PodEntry) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.may_end.wait()
        finally:
            self.running -= 1
        if error := self.errors.get(pod.value.vmid):
            raise error
        self.registry.save_pod(pod, replace(pod.value, vmid=Vmid(0)), ending=True)

    async def ended(self) -> None:
        """Until nothing is left to destroy."""
        self.may_end.set()
        while self.supervisor.tasks:
            await asyncio.wait(self.supervisor.tasks)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    made = Node(tmp_path)
    yield made
    await made.supervisor.close()
    made.store.close()


async def test_pod_is_gone_and_its_vmid_taken_until_the_ct_is_destroyed(node: Node) -> None:
    node.removals.add(node.registry.add_pod(sandbox(1)))
    with pytest.raises(NotFound):
        node.registry.pod(sandbox(1).id)
    assert node.registry.pods() == []
    assert node.removals.pending() == [Removal(900_001, "web-1_shop_a1_0", "")]
    node.registry.add_pod(replace(sandbox(2, "web-1"), vmid=Vmid(0)))  # the same name
    with pytest.raises(AlreadyExists):
        node.registry.add_pod(replace(sandbox(3), vmid=Vmid(900_001)))
    await node.ended()
    assert node.removals.pending() == []
    assert [each.id for each in node.store.sandboxes()] == [sandbox(2).id]


async def test_one_event_says_that_the_pod_is_deleted(node: Node) -> None:
    pod = node.registry.add_pod(sandbox(1))
    events = node.registry.events.subscribe()
    node.removals.add(pod)
    node.removals.add(pod)
    await node.ended()
    node.registry.add_pod(replace(sandbox(2), phase=SandboxPhase.CREATING))
    node.registry.save_pod(node.registry.pods()[0], replace(sandbox(2), phase=SandboxPhase.READY))
    found = [(await anext(events)).kind for _ in range(2)]
    assert found == [EventKind.DELETED, EventKind.CREATED]


async def test_failed_removal_is_shown_and_tried_again(node: Node) -> None:
    node.removals.add(node.registry.add_pod(sandbox(1)))
    node.errors[900_001] = CtLocked("destroy CT 900001", "CT is locked (backup)")
    node.may_end.set()
    while not (found := node.removals.pending()[0]).error:
        await asyncio.sleep(0)
    assert "CT is locked (backup)" in found.error
    del node.errors[900_001]
    node.may_retry.set()
    await node.ended()
    assert node.store.sandboxes() == []


async def test_next_daemon_process_goes_on(node: Node) -> None:
    node.removals.add(node.registry.add_pod(sandbox(1)))
    await asyncio.sleep(0)
    await node.supervisor.close()
    node.start()
    assert node.registry.pods() == []
    assert [each.vmid for each in node.removals.pending()] == [900_001]
    await node.ended()
    assert node.store.sandboxes() == []


@pytest.mark.parametrize(("idle", "most"), [(True, CONCURRENT), (False, 1)])
async def test_few_are_destroyed_at_once_and_one_while_a_pod_is_created(node: Node, idle: bool, most: int) -> None:
    if not idle:
        node.idle.clear()
    for number in range(20):
        node.removals.add(node.registry.add_pod(sandbox(number)))
    while node.running < most:
        await asyncio.sleep(0)
    await node.ended()
    assert node.most == most
    assert node.store.sandboxes() == []


async def test_pod_of_a_front_waits_for_the_ct_of_an_earlier_one_with_its_id(node: Node) -> None:
    await node.removals.wait(sandbox(1).id, 0)
    node.removals.add(node.registry.add_pod(sandbox(1)))
    with pytest.raises(FailedPrecondition, match="is still there: Proxmox has not destroyed it yet"):
        await node.removals.wait(sandbox(1).id, 0)
    node.may_end.set()
    await node.removals.wait(sandbox(1).id, 60)
    node.registry.add_pod(sandbox(1))


async def test_pod_without_a_vmid_waits_for_removals_that_have_not_failed(node: Node) -> None:
    assert not await node.removals.wait_for_any()
    node.removals.add(node.registry.add_pod(sandbox(1)))
    waiting = asyncio.create_task(node.removals.wait_for_any())
    await asyncio.sleep(0)
    assert not waiting.done()
    node.errors[900_001] = CtLocked("destroy CT 900001", "CT is locked (backup)")
    node.may_end.set()
    assert await waiting
    assert not await node.removals.wait_for_any()
