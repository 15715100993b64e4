# SPDX-License-Identifier: Apache-2.0
"""Warm CTs in the registry: apart from the pods, claimed in one write, and removed without an event."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from pvecri.errors import AlreadyExists, NotFound
from pvecri.model import Sandbox, SandboxConfig, SandboxId, SandboxMetadata, SandboxPhase, Vmid, WarmCt
from pvecri.pods.registry import LifecycleEvent, PodEntry, Registry
from pvecri.pods.store import Store

ID, OTHER = SandboxId("ab1" + "0" * 61), SandboxId("ab2" + "0" * 61)


def sandbox(name: str, sandbox_id: SandboxId = ID, warm: WarmCt | None = None, vmid: int = 900_000) -> Sandbox:
    metadata = SandboxMetadata(name=name, namespace="shop", uid="1")
    return Sandbox(
        id=sandbox_id,
        config=SandboxConfig(metadata=metadata),
        created_at=1,
        phase=SandboxPhase.CREATING,
        vmid=Vmid(vmid),
        warm=warm,
    )


WARM = sandbox("warm", warm=WarmCt(fingerprint="f", digest="d"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "pods.db")
    yield opened
    opened.close()


@pytest.fixture
def registry(store: Store, tmp_path: Path) -> Registry:
    return Registry(store, tmp_path)


@pytest.fixture
def warm(registry: Registry) -> PodEntry:
    return registry.add_warm(WARM)


def test_warm_ct_is_no_pod(registry: Registry, warm: PodEntry) -> None:
    assert (registry.pods(), registry.warm(), registry.cts()) == ([], [warm], [warm])
    with pytest.raises(NotFound):
        registry.pod(ID)
    registry.save_pod(warm, replace(warm.value, phase=SandboxPhase.REMOVING))
    with pytest.raises(NotFound):
        registry.pod(ID)


def test_warm_ct_is_one_after_a_restart(store: Store, warm: PodEntry, tmp_path: Path) -> None:
    later = Registry(store, tmp_path)
    later.load()
    assert [each.value for each in later.warm()] == [WARM]
    assert later.pods() == []


def test_claim_replaces_the_row(registry: Registry, store: Store, warm: PodEntry) -> None:
    registry.claim_warm(warm, sandbox("web"))
    assert (registry.pods(), registry.warm()) == ([warm], [])
    assert store.sandboxes() == [sandbox("web")]
    assert warm.notified is LifecycleEvent.NONE
    # The name is the pod's in the database, too.
    registry.add_pod(sandbox("warm", OTHER, vmid=0))
    assert len(store.sandboxes()) == 2


def test_claim_of_a_taken_name_changes_nothing(registry: Registry, store: Store, warm: PodEntry) -> None:
    registry.add_pod(sandbox("web", OTHER, vmid=0))
    with pytest.raises(AlreadyExists, match="web_shop_1_0 exists already"):
        registry.claim_warm(warm, sandbox("web"))
    assert registry.warm() == [warm]
    assert warm.value in store.sandboxes()


def test_name_of_a_pod_that_could_not_use_its_ct_is_free(registry: Registry, store: Store, warm: PodEntry) -> None:
    registry.claim_warm(warm, sandbox("web"))
    registry.retire_pod(warm)
    assert (registry.pods(), registry.warm(), registry.removed()) == ([], [], [warm])
    registry.add_pod(sandbox("web", OTHER, vmid=0))
    registry.drop_pod(warm)
    assert [each.id for each in store.sandboxes()] == [OTHER]
    assert registry.cts() == registry.pods()


async def test_life_of_a_warm_ct_has_no_events(registry: Registry, warm: PodEntry) -> None:
    subscription = registry.events.subscribe()
    registry.save_pod(warm, replace(warm.value, phase=SandboxPhase.STOPPED))
    registry.save_pod(warm, replace(warm.value, phase=SandboxPhase.REMOVING))
    registry.drop_pod(warm)
    subscription.close()
    assert [event async for event in subscription] == []
