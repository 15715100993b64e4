# SPDX-License-Identifier: Apache-2.0
"""When the notes of CTs are written: seldom, and not while Proxmox is away."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from msgspec.structs import replace

from pvecri.errors import Unavailable
from pvecri.linux.processes import Process
from pvecri.model import Sandbox, SandboxConfig, SandboxId, SandboxMetadata, SandboxPhase, Vmid
from pvecri.pods.registry import PodEntry, Registry
from pvecri.pods.sandbox.ct import SandboxCts
from pvecri.pods.sandbox.notes_updater import PAUSE, SETTLE_TIME, NotesUpdater
from pvecri.pods.store import Store
from pvecri.proxmox.errors import CtHidden, CtLocked


class Node:
    """Pods whose CTs' notes are versions, the clock, and Proxmox."""

    def __init__(self, directory: Path) -> None:
        self.registry = Registry(Store(directory / "pods.db"), directory)
        self.now = 1000.0
        self.ready = True
        self.error: Exception | None = None
        self.wanted: dict[SandboxId, int] = {}
        self.shown: dict[SandboxId, int] = {}
        self.written: list[float] = []
        self.updater = NotesUpdater(
            self.registry, cast(SandboxCts, self), lambda: self.ready, clock=lambda: self.now
        )

    def run_pod(self, number: int = 0) -> PodEntry:
        sandbox = Sandbox(
            id=SandboxId(f"{number:064x}"),
            config=SandboxConfig(metadata=SandboxMetadata(name=f"web-{number}", namespace="shop", uid="a1")),
            created_at=1,
            phase=SandboxPhase.READY,
            vmid=Vmid(900_000 + number),
        )
        pod = self.registry.add_pod(sandbox)
        pod.init = Process(os.getpid())
        self.wanted[pod.id] = self.shown[pod.id] = 0
        return pod

    def notes_differ(self, pod: PodEntry) -> bool:
        return self.wanted[pod.id] != self.shown[pod.id]

    async def write_notes(self, pod: PodEntry) -> None:
        self.written.append(self.now)
        if self.error is not None:
            raise self.error
        self.shown[pod.id] = self.wanted[pod.id]

    async def run(self, seconds: float, change: SandboxId | None = None) -> None:
        """Let time pass; `change`s notes change all the time."""
        end = self.now + seconds
        while self.now < end:
            if change is not None:
                self.wanted[change] += 1
            await self.updater.update()
            self.now += 1


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    for pod in node.registry.pods():
        if pod.init is not None:
            pod.init.close()


async def test_notes_are_written_once_after_changes_have_settled(node: Node) -> None:
    pod = node.run_pod()
    await node.run(100)
    begin = node.now
    for _ in range(5):  # containers that are created and started
        node.wanted[pod.id] += 1
        await node.run(1)
    await node.run(300)
    assert node.written == [begin + SETTLE_TIME]
    assert not node.notes_differ(pod)


async def test_notes_of_a_pod_that_keeps_changing_are_written_once_a_minute(node: Node) -> None:
    pod = node.run_pod()
    await node.run(10 * PAUSE, change=pod.id)
    assert {later - earlier for earlier, later in zip(node.written, node.written[1:], strict=False)} == {PAUSE}


async def test_change_that_is_undone_is_not_written(node: Node) -> None:
    pod = node.run_pod()
    node.wanted[pod.id] = 1
    await node.run(5)
    node.wanted[pod.id] = 0
    await node.run(100)
    assert node.written == []


async def test_nothing_is_written_while_proxmox_is_away(node: Node) -> None:
    pod = node.run_pod()
    node.ready = False
    node.wanted[pod.id] = 1
    await node.run(100)
    assert node.written == []
    node.ready = True
    await node.run(SETTLE_TIME + 1)
    assert not node.notes_differ(pod)


@pytest.mark.parametrize(
    "error", [CtLocked("configure", "CT is locked (backup)"), CtHidden("our account does not see it"), OSError()]
)
async def test_failure_is_tried_again_after_a_minute_and_keeps_no_other_pod_waiting(
    node: Node, error: Exception
) -> None:
    first, second = node.run_pod(0), node.run_pod(1)
    node.error = error
    node.wanted[first.id] = node.wanted[second.id] = 1
    await node.run(SETTLE_TIME + 1)
    assert len(node.written) == 2
    node.error = None
    await node.run(PAUSE)
    assert len(node.written) == 4
    assert not node.notes_differ(first)
    assert not node.notes_differ(second)


async def test_one_request_in_a_minute_finds_proxmox_unavailable(node: Node) -> None:
    """As without quorum, when Proxmox answers and nothing can be changed."""
    pods = [node.run_pod(number) for number in range(20)]
    node.error = Unavailable("/etc/pve is read-only")
    for pod in pods:
        node.wanted[pod.id] = 1
    await node.run(SETTLE_TIME + 5 * PAUSE)
    assert len(node.written) == 5
    node.error = None
    await node.run(2 * PAUSE)
    assert not any(node.notes_differ(pod) for pod in pods)


async def test_notes_of_a_pod_that_has_ended_stay(node: Node) -> None:
    pod = node.run_pod()
    node.wanted[pod.id] = 1
    await node.run(5)
    node.registry.save_pod(pod, replace(pod.value, phase=SandboxPhase.STOPPED))
    await node.run(100)
    assert node.written == []
