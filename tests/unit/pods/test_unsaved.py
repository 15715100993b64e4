# SPDX-License-Identifier: Apache-2.0
"""What ends is recorded while the database cannot be written, and written when it can be."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from support.filled import filled

from pvecri.model import Container, ContainerState, Sandbox, SandboxId, SandboxPhase
from pvecri.pods.registry import PodEntry, Registry
from pvecri.pods.store import Store, StoreUnavailable


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pods.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    opened = Store(path)
    yield opened
    opened.close()


@pytest.fixture
def pods(store: Store, tmp_path: Path) -> Registry:
    return Registry(store, tmp_path)


@pytest.fixture
def locked(path: Path) -> Iterator[sqlite3.Connection]:
    """Another program holds the database's lock for writing."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    yield other
    other.close()


@pytest.fixture
def pod(pods: Registry) -> PodEntry:
    return pods.add_pod(replace(filled(Sandbox), phase=SandboxPhase.READY, warm=None, removed=False))


def made(sandbox: SandboxId) -> Container:
    return replace(filled(Container), sandbox_id=sandbox, state=ContainerState.RUNNING)


def test_what_begins_is_refused_and_changes_nothing(
    pods: Registry, store: Store, pod: PodEntry, locked: sqlite3.Connection
) -> None:
    before = pod.value
    with pytest.raises(
        StoreUnavailable, match=r"pods\.db cannot be written: database is locked \(runtime\.state_dir"
    ):
        pods.save_pod(pod, replace(pod.value, networked=not before.networked))
    assert pod.value is before
    assert store.sandboxes() == [before]


async def test_what_ends_counts_at_once_and_is_written_later(
    pods: Registry, store: Store, pod: PodEntry, locked: sqlite3.Connection
) -> None:
    stopped = replace(pod.value, phase=SandboxPhase.STOPPED)
    pods.save_pod(pod, stopped, ending=True)
    assert pods.pod(pod.id).value is stopped
    with pytest.raises(StoreUnavailable):
        await pods.write_unsaved()
    locked.rollback()
    await pods.write_unsaved()
    assert store.sandboxes() == [stopped]


def test_a_pod_can_be_removed_and_its_row_goes_later(
    pods: Registry, store: Store, pod: PodEntry, locked: sqlite3.Connection
) -> None:
    locked.rollback()
    container = pods.add_container(made(pod.id))
    locked.execute("BEGIN IMMEDIATE")
    pods.save_container(container, replace(container.value, state=ContainerState.EXITED), ending=True)
    pods.drop_container(container)
    pods.drop_pod(pod)
    assert pods.pods() == [] == pods.containers()
    locked.rollback()
    pods.close()
    assert store.sandboxes() == [] == store.containers()


def test_a_name_is_free_again_before_its_row_is_gone(
    pods: Registry, store: Store, pod: PodEntry, locked: sqlite3.Connection
) -> None:
    pods.drop_pod(pod)
    locked.rollback()
    second = pods.add_pod(replace(pod.value, id=SandboxId("b" * 64)))
    assert store.sandboxes() == [second.value]


def test_a_container_that_ends_with_its_pod_leaves_nothing_to_write(
    pods: Registry, store: Store, pod: PodEntry, locked: sqlite3.Connection
) -> None:
    locked.rollback()
    container = pods.add_container(made(pod.id))
    locked.execute("BEGIN IMMEDIATE")
    pods.save_container(container, replace(container.value, state=ContainerState.EXITED), ending=True)
    pods.drop_pod(pod)
    locked.rollback()
    pods.close()
    pods.save_container(container, replace(container.value, exit_code=1), ending=True)
    assert store.sandboxes() == [] == store.containers()
    assert container.value.exit_code == 1


async def test_waiting_ends_when_something_is_unsaved(
    pods: Registry, pod: PodEntry, locked: sqlite3.Connection
) -> None:
    pods.save_pod(pod, replace(pod.value, phase=SandboxPhase.STOPPED), ending=True)
    await pods.unsaved.wait()
    assert pod.id in pods.unsaved


def test_what_ends_after_the_store_was_closed_raises_nothing(pods: Registry, store: Store, pod: PodEntry) -> None:
    store.close()
    pods.save_pod(pod, replace(pod.value, phase=SandboxPhase.REMOVING), ending=True)
    with pytest.raises(StoreUnavailable, match="the daemon is ending"):
        pods.save_pod(pod, replace(pod.value, networked=True))


def test_a_read_only_file_is_no_obstacle_to_an_end(
    pods: Registry, store: Store, pod: PodEntry, path: Path
) -> None:
    read_only = Registry(_read_only(path), path.parent)
    read_only.load()
    adopted = read_only.pod(pod.id)
    read_only.save_pod(adopted, replace(adopted.value, phase=SandboxPhase.STOPPED), ending=True)
    assert read_only.pod(pod.id).value.phase is SandboxPhase.STOPPED
    assert store.sandboxes() == [pod.value]


def _read_only(path: Path) -> Store:
    """A store on a connection that may not write, as on a filesystem that was remounted after an error."""
    opened = Store(path)
    opened._db.execute("PRAGMA query_only = ON")
    return opened
