# SPDX-License-Identifier: Apache-2.0
"""What the store holds comes back as it was, and no two pods or containers take each other's place."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from support.filled import filled

from pvecri.errors import AlreadyExists, InternalError
from pvecri.model import Container, ContainerId, ContainerMetadata, Sandbox, SandboxId, SandboxPhase, Vmid
from pvecri.pods.store import SCHEMA_VERSION, Recorded, Store, recorded

FILLED = filled(Sandbox)
WEB = SandboxId("a" * 64)
DB = SandboxId("b" * 64)


def sandbox(sandbox_id: SandboxId = WEB, name: str = "web", **said: Any) -> Sandbox:
    config = replace(FILLED.config, metadata=replace(FILLED.config.metadata, name=name))
    return replace(FILLED, id=sandbox_id, config=config, **{"removed": False, **said})


def container(container_id: str = "c1", name: str = "main", pod: SandboxId = WEB, attempt: int = 0) -> Container:
    value = filled(Container)
    config = replace(value.config, metadata=ContainerMetadata(name=name, attempt=attempt))
    return replace(value, id=ContainerId(container_id), sandbox_id=pod, config=config)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pods.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    opened = Store(path)
    yield opened
    opened.close()


def reopened(store: Store, path: Path) -> Store:
    store.close()
    return Store(path)


def test_all_fields_of_pods_and_containers_are_persistent(store: Store, path: Path) -> None:
    store.save_sandbox(sandbox())
    store.save_container(container())
    later = reopened(store, path)
    assert later.sandboxes() == [sandbox()]
    assert later.containers() == [container()]
    later.close()


def test_writes_survive_a_killed_daemon(store: Store, path: Path) -> None:
    store.save_sandbox(sandbox())
    other = Store(path)
    assert other.sandboxes() == [sandbox()]
    other.close()


def test_saving_again_replaces(store: Store) -> None:
    store.save_sandbox(sandbox(phase=SandboxPhase.CREATING, vmid=Vmid(0)))
    store.save_sandbox(sandbox(phase=SandboxPhase.READY, vmid=Vmid(900_001)))
    store.save_container(container())
    store.save_container(replace(container(), exit_code=3))
    assert [(each.phase, each.vmid) for each in store.sandboxes()] == [(SandboxPhase.READY, 900_001)]
    assert [each.exit_code for each in store.containers()] == [3]


def test_two_pods_cannot_have_one_name(store: Store) -> None:
    store.save_sandbox(sandbox(WEB, vmid=Vmid(900_001)))
    with pytest.raises(AlreadyExists, match=r"^pod sandbox web_"):
        store.save_sandbox(sandbox(DB, vmid=Vmid(900_002)))
    assert [each.id for each in store.sandboxes()] == [WEB]


def test_two_pods_cannot_have_one_vmid(store: Store) -> None:
    store.save_sandbox(sandbox(WEB, "web", vmid=Vmid(900_001)))
    store.save_sandbox(sandbox(DB, "db", vmid=Vmid(900_002)))
    with pytest.raises(AlreadyExists, match=r"\(CT 900001\)"):
        store.save_sandbox(sandbox(DB, "db", vmid=Vmid(900_001)))
    assert {each.vmid for each in store.sandboxes()} == {900_001, 900_002}


def test_any_number_of_pods_may_have_no_vmid(store: Store) -> None:
    store.save_sandbox(sandbox(WEB, "web", vmid=Vmid(0)))
    store.save_sandbox(sandbox(DB, "db", vmid=Vmid(0)))
    assert len(store.sandboxes()) == 2


def test_name_and_vmid_of_a_deleted_pod_are_free(store: Store) -> None:
    store.save_sandbox(sandbox(WEB))
    store.delete_sandbox(WEB)
    store.save_sandbox(sandbox(DB))
    assert [each.id for each in store.sandboxes()] == [DB]


def test_two_containers_of_a_pod_cannot_have_one_name_and_attempt(store: Store) -> None:
    store.save_sandbox(sandbox())
    store.save_container(container("c1", attempt=0))
    store.save_container(container("c2", attempt=1))
    with pytest.raises(AlreadyExists, match=r"^container main_1 of sandbox aaaa"):
        store.save_container(container("c3", attempt=1))


def test_containers_of_different_pods_may_have_one_name(store: Store) -> None:
    store.save_sandbox(sandbox(WEB, "web", vmid=Vmid(900_001)))
    store.save_sandbox(sandbox(DB, "db", vmid=Vmid(900_002)))
    store.save_container(container("c1", pod=WEB))
    store.save_container(container("c2", pod=DB))
    assert {(each.id, each.sandbox_id) for each in store.containers()} == {("c1", WEB), ("c2", DB)}


def test_a_container_needs_a_pod(store: Store) -> None:
    with pytest.raises(AlreadyExists, match="FOREIGN KEY"):
        store.save_container(container())


def test_deleting_a_pod_deletes_its_containers(store: Store) -> None:
    store.save_sandbox(sandbox())
    for name in ("one", "two"):
        store.save_container(container(name, name))
    store.delete_container(ContainerId("one"))
    assert [each.id for each in store.containers()] == ["two"]
    store.delete_sandbox(WEB)
    assert (store.sandboxes(), store.containers()) == ([], [])


def test_delete_is_idempotent(store: Store) -> None:
    store.delete_sandbox(WEB)
    store.delete_container(ContainerId("c1"))


def test_installation_id_is_persistent(store: Store, path: Path, tmp_path: Path) -> None:
    first = store.installation_id()
    assert store.installation_id() == first
    assert len(first) == 16
    later, other = reopened(store, path), Store(tmp_path / "other.db")
    assert later.installation_id() == first
    assert other.installation_id() != first
    later.close()
    other.close()


def test_database_of_a_newer_version_is_refused_unchanged(path: Path) -> None:
    newer = sqlite3.connect(path)
    newer.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    newer.close()
    before = path.read_bytes()
    with pytest.raises(
        InternalError, match=rf"^{path}: written by a newer pvecri \(schema {SCHEMA_VERSION + 1}, "
    ):
        Store(path)
    assert path.read_bytes() == before


def test_invalid_database_is_refused_unchanged(path: Path) -> None:
    path.write_text("not a database, but somebody's notes\n" * 100)
    before = path.read_bytes()
    with pytest.raises(InternalError, match=rf"^{path}: file is not a database$"):
        Store(path)
    assert path.read_bytes() == before


def test_database_is_readable_by_root_only(store: Store, path: Path) -> None:
    store.save_sandbox(sandbox())
    store.save_container(container())
    for file in path.parent.glob("pods.db*"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_removed_pod_keeps_its_vmid_and_not_its_name(store: Store, path: Path) -> None:
    store.save_sandbox(sandbox(WEB, vmid=Vmid(900_001)))
    store.save_sandbox(sandbox(WEB, vmid=Vmid(900_001), removed=True))
    with pytest.raises(AlreadyExists, match="900001"):
        store.save_sandbox(sandbox(DB, vmid=Vmid(900_001)))
    store.save_sandbox(sandbox(DB, vmid=Vmid(900_002)))
    found = recorded(path)
    assert set(found.pods) == {900_001, 900_002}
    assert found.removed == {900_001}
    assert found.pods[900_002] == sandbox(DB).name


def test_another_process_reads_what_a_daemon_records(store: Store, path: Path) -> None:
    assert recorded(path.with_name("none.db")) == Recorded("", {})
    assert not path.with_name("none.db").exists()
    assert recorded(path) == Recorded("", {})
    installation = store.installation_id()
    store.save_sandbox(sandbox(vmid=Vmid(900_001)))
    store.save_sandbox(sandbox(DB, "db", vmid=Vmid(0)))
    assert recorded(path) == Recorded(installation, {900_001: sandbox().name})


def test_database_that_is_none_is_an_error_for_a_reader(tmp_path: Path) -> None:
    path = tmp_path / "pods.db"
    path.write_text("not a database" * 100)
    with pytest.raises(InternalError, match=r"pods\.db"):
        recorded(path)


async def test_rows_are_synced_before_and_after_a_checkpoint(store: Store, path: Path) -> None:
    await store.sync()
    store.save_sandbox(sandbox())
    await store.sync()
    store.close()
    await store.sync()
    assert [each.id for each in Store(path).sandboxes()] == [WEB]
