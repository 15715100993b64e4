# SPDX-License-Identifier: Apache-2.0
"""When the warm pool creates the next CT: not while a pod is being started."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from pvecri.config.settings import ProxmoxConfig, WarmPods
from pvecri.errors import ResourceExhausted
from pvecri.linux import accounting
from pvecri.linux.processes import Process
from pvecri.model import Sandbox, SandboxConfig, SandboxId, SandboxMetadata, SandboxPhase, Vmid, WarmCt
from pvecri.pods.registry import PodEntry, Registry
from pvecri.pods.sandbox.ct import SandboxCts
from pvecri.pods.sandbox.stop import SandboxTeardown
from pvecri.pods.store import Store
from pvecri.pods.warm import pool as warm_pool
from pvecri.pods.warm.demand import CtKind
from pvecri.pods.warm.pool import WarmPool
from pvecri.proxmox.api import ProxmoxApi
from pvecri.supervision import Supervisor


class Cts:
    """The CTs of a node on which each create is refused, for want of a VMID."""

    def __init__(self) -> None:
        self.idle = asyncio.Event()
        self.idle.set()
        self.creates = 0

    async def prepare(self) -> None:
        """Nothing to prepare."""

    def fingerprint(self, *, privileged: bool) -> str:
        return "f"

    async def create(self, entry: PodEntry) -> None:
        self.creates += 1
        raise ResourceExhausted("all VMIDs are in use")

    async def name(self, pod: PodEntry) -> None:
        """The CT has the pod's name."""

    async def assign(self, pod: PodEntry, digest: str, **more: object) -> None:
        """The CT has the pod's config."""


def sandbox(name: str, warm: WarmCt | None = None) -> Sandbox:
    return Sandbox(
        id=SandboxId(name.encode().hex().ljust(64, "0")),
        config=SandboxConfig(metadata=SandboxMetadata(name=name, namespace="shop", uid="1")),
        created_at=1,
        phase=SandboxPhase.CREATING,
        vmid=Vmid(900_000) if warm else Vmid(0),
        ct_made=warm is not None,
        warm=warm,
    )


class Node:
    """A pool with one CT that waits, and a pod that can claim it."""

    def __init__(self, directory: Path, store: Store, supervisor: Supervisor) -> None:
        self.registry = Registry(store, directory)
        self.cts = Cts()
        teardown = SimpleNamespace(
            removal_pending=asyncio.Event(), shutdowns=SimpleNamespace(watch=lambda entry: None)
        )
        self.pool = WarmPool(
            ProxmoxConfig(warm_pods=WarmPods(unprivileged=1)),
            self.registry,
            cast(SandboxCts, self.cts),
            cast(ProxmoxApi, None),
            cast(SandboxTeardown, teardown),
            supervisor,
        )
        self.waiting = self.registry.add_warm(sandbox("warm", WarmCt(fingerprint="f", digest="d")))
        self.waiting.init = Process(os.getpid())
        self.pool.adopt(self.waiting)

    def reserve(self, *, warm: bool) -> PodEntry:
        claimed = self.pool.claim(sandbox("web"), None) if warm else None
        return claimed or self.registry.add_pod(sandbox("web"))

    @asynccontextmanager
    async def starting(self) -> AsyncIterator[asyncio.Event]:
        """A pod that has claimed the CT is being started, until the event is set."""
        steps = asyncio.Event()
        at_steps = asyncio.Event()

        async def start(pod: PodEntry) -> None:
            async with self.pool.handing_over(pod):
                at_steps.set()
                await steps.wait()

        start_of_pod = asyncio.create_task(self.pool.obtain(self.reserve, start))
        await at_steps.wait()
        yield steps
        steps.set()
        assert await start_of_pod is self.waiting


@pytest.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    monkeypatch.setattr(accounting, "available_memory", lambda: 1.0)
    supervisor, store = Supervisor(), Store(tmp_path / "pods.db")
    node = Node(tmp_path, store, supervisor)
    yield node
    await supervisor.close()
    assert node.waiting.init is not None
    node.waiting.init.close()
    store.close()


async def test_next_ct_waits_until_the_pod_has_started(node: Node) -> None:
    async with node.starting() as steps:
        refill = asyncio.create_task(node.pool.keep(CtKind.UNPRIVILEGED))
        for _ in range(10):
            await asyncio.sleep(0)
        assert (node.pool.waiting(CtKind.UNPRIVILEGED), node.cts.creates) == (0, 0)
        steps.set()
        await refill
    assert node.cts.creates == 1


async def test_starts_that_never_end_do_not_empty_the_pool(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_pool, "YIELD_TIMEOUT", 0.001)
    async with node.starting():
        await node.pool.keep(CtKind.UNPRIVILEGED)
        assert node.cts.creates == 1
