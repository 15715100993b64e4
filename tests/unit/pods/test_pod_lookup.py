# SPDX-License-Identifier: Apache-2.0
"""Pods and containers are found by their id, or by the beginning of it that clients abbreviate it to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from support.filled import filled

from pvecri.errors import AlreadyExists, NotFound
from pvecri.model import (
    Container,
    ContainerId,
    ContainerMetadata,
    IdMapping,
    NamespaceMode,
    NamespaceOptions,
    Sandbox,
    SandboxId,
    SandboxMetadata,
    SandboxPhase,
    SandboxSecurity,
    UserNamespace,
    Vmid,
)
from pvecri.pods.registry import PodEntry, Registry
from pvecri.pods.store import Store

WEB, DB = SandboxId("ab1" + "0" * 61), SandboxId("ab2" + "0" * 61)
MAIN = ContainerId("cd1" + "0" * 61)


def sandbox(sandbox_id: SandboxId = WEB, name: str = "web", phase: SandboxPhase = SandboxPhase.READY) -> Sandbox:
    value = filled(Sandbox)
    config = replace(value.config, metadata=SandboxMetadata(name=name, namespace="shop", uid="1"))
    return replace(value, id=sandbox_id, config=config, phase=phase, vmid=Vmid(0), warm=None, removed=False)


def container(container_id: ContainerId = MAIN, name: str = "main", attempt: int = 0) -> Container:
    value = filled(Container)
    config = replace(value.config, metadata=ContainerMetadata(name=name, attempt=attempt))
    return replace(value, id=container_id, sandbox_id=WEB, config=config)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "pods.db")
    yield opened
    opened.close()


@pytest.fixture
def registry(store: Store, tmp_path: Path) -> Registry:
    return Registry(store, tmp_path)


@pytest.mark.parametrize("wanted", [WEB, WEB[:63], "ab1", "ab10"])
def test_pod_is_found_by_a_unique_prefix(registry: Registry, wanted: str) -> None:
    registry.add_pod(sandbox(WEB, "web"))
    registry.add_pod(sandbox(DB, "db"))
    assert registry.pod(wanted).id == WEB


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ("ab", "is ambiguous"),
        ("a", "is ambiguous"),
        ("", "does not exist"),
        ("b1", "does not exist"),
        (WEB + "0", "does not exist"),
        (WEB[:63] + "1", "does not exist"),
        ("AB1", "does not exist"),
    ],
)
def test_unknown_or_ambiguous_prefix_is_not_found(registry: Registry, wanted: str, problem: str) -> None:
    registry.add_pod(sandbox(WEB, "web"))
    registry.add_pod(sandbox(DB, "db"))
    with pytest.raises(NotFound) as caught:
        registry.pod(wanted)
    assert str(caught.value) == f"pod sandbox {wanted!r} {problem}"


def test_full_id_takes_precedence_over_prefix(registry: Registry) -> None:
    for sandbox_id in ("ab", "abc"):
        registry.add_pod(sandbox(SandboxId(sandbox_id), sandbox_id))
    assert registry.pod("ab").id == "ab"


def test_pod_being_created_is_not_found_and_not_ambiguous(registry: Registry) -> None:
    registry.add_pod(sandbox(WEB, "web", SandboxPhase.CREATING))
    with pytest.raises(NotFound, match="does not exist"):
        registry.pod(WEB)
    registry.add_pod(sandbox(DB, "db"))
    assert registry.pod("ab").id == DB


@pytest.mark.parametrize("phase", [SandboxPhase.READY, SandboxPhase.STOPPED, SandboxPhase.REMOVING])
def test_pod_is_found_until_it_is_removed(registry: Registry, phase: SandboxPhase) -> None:
    pod = registry.add_pod(sandbox(phase=phase))
    assert registry.pod(WEB) is pod
    registry.drop_pod(pod)
    with pytest.raises(NotFound):
        registry.pod(WEB)


def test_container_is_found_by_prefix_and_has_its_pod(registry: Registry) -> None:
    pod = registry.add_pod(sandbox())
    made = registry.add_container(container())
    with pytest.raises(NotFound, match=r"^container 'cd' does not exist$"):
        registry.container("cd")  # not yet complete
    registry.save_container(made, made.value)
    assert registry.container("cd") is made
    assert registry.pod_of(made) is pod


def test_removing_a_pod_removes_its_containers(registry: Registry, store: Store) -> None:
    pod = registry.add_pod(sandbox())
    made = registry.add_container(container())
    registry.save_container(made, made.value)
    registry.drop_pod(pod)
    with pytest.raises(NotFound, match=r"^container 'cd' does not exist$"):
        registry.container("cd")
    assert (registry.containers(), store.containers()) == ([], [])


def test_drop_is_idempotent(registry: Registry) -> None:
    pod = registry.add_pod(sandbox())
    made = registry.add_container(container())
    for _ in range(2):
        registry.drop_container(made)
    for _ in range(2):
        registry.drop_pod(pod)


def test_error_for_a_used_name_has_the_owners_id(registry: Registry, store: Store) -> None:
    registry.add_pod(sandbox(WEB))
    with pytest.raises(AlreadyExists) as caught:
        registry.add_pod(sandbox(DB))
    assert str(caught.value) == f"config.metadata: pod sandbox web_shop_1_0 exists already, its id is {WEB}"
    assert [each.id for each in store.sandboxes()] == [WEB]


def test_container_name_is_unique_per_attempt(registry: Registry) -> None:
    registry.add_pod(sandbox())
    registry.add_container(container())
    registry.add_container(container(ContainerId("cd2"), attempt=1))
    with pytest.raises(AlreadyExists) as caught:
        registry.add_container(container(ContainerId("cd3"), attempt=0))
    words = f"config.metadata: container main (attempt 0) exists already in the pod, its id is {MAIN}"
    assert str(caught.value) == words


def test_load_restores_pods_and_containers(registry: Registry, store: Store, tmp_path: Path) -> None:
    registry.add_pod(sandbox())
    registry.add_container(container())
    later = Registry(store, tmp_path)
    later.load()
    pod, found = later.pod(WEB), later.container(MAIN)
    assert (pod.value, found.value) == (sandbox(), container())
    assert pod.containers == {MAIN: found}
    assert (pod.directory, found.bundle.directory) == (tmp_path / "pods" / WEB, tmp_path / "containers" / MAIN)
    assert not pod.alive


def live(options: NamespaceOptions, tmp_path: Path) -> PodEntry:
    value = sandbox()
    config = replace(value.config, security=SandboxSecurity(namespaces=options))
    return PodEntry(replace(value, config=config, vmid=Vmid(900_007), front=None), tmp_path / WEB)


@pytest.mark.parametrize(
    ("options", "depth"),
    [
        (NamespaceOptions(), 1),
        (NamespaceOptions(pid=NamespaceMode.CONTAINER), 1),
        (NamespaceOptions(user=UserNamespace(mode=NamespaceMode.NODE)), 1),
        (
            NamespaceOptions(
                user=UserNamespace(mode=NamespaceMode.POD, uids=(IdMapping(container_id=0, host_id=1, length=1),))
            ),
            1,
        ),
    ],
)
def test_the_oci_runtime_reaches_a_pod_by_its_pinned_pid_namespace(
    options: NamespaceOptions, depth: int, tmp_path: Path
) -> None:
    namespaces = live(options, tmp_path).namespaces
    assert (namespaces.pid, namespaces.depth) == (tmp_path / WEB / "ns/pid", depth)
    assert namespaces.cgroups.monitors == "/lxc/900007/conmon"
    assert namespaces.cgroups.container(MAIN) == f"/lxc/900007/{MAIN}"


def test_host_pid_pod_has_no_pid_namespace_to_enter(tmp_path: Path) -> None:
    namespaces = live(NamespaceOptions(pid=NamespaceMode.NODE), tmp_path).namespaces
    assert (namespaces.pid, namespaces.depth) == (None, 0)
