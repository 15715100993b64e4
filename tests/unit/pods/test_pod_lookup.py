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
    return replace(value, id=sandbox_id, config=config, phase=phase, vmid=Vmid(0))


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
def test_a_pod_is_found_by_any_beginning_that_it_has_alone(registry: Registry, wanted: str) -> None:
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
def test_what_no_pod_or_more_than_one_begins_with_is_not_found(
    registry: Registry, wanted: str, problem: str
) -> None:
    registry.add_pod(sandbox(WEB, "web"))
    registry.add_pod(sandbox(DB, "db"))
    with pytest.raises(NotFound) as caught:
        registry.pod(wanted)
    assert str(caught.value) == f"pod sandbox {wanted!r} {problem}"


def test_a_whole_id_is_found_although_another_begins_with_it(registry: Registry) -> None:
    for sandbox_id in ("ab", "abc"):
        registry.add_pod(sandbox(SandboxId(sandbox_id), sandbox_id))
    assert registry.pod("ab").id == "ab"


def test_a_pod_that_is_being_made_is_not_found_and_in_nobodys_way(registry: Registry) -> None:
    registry.add_pod(sandbox(WEB, "web", SandboxPhase.CREATING))
    with pytest.raises(NotFound, match="does not exist"):
        registry.pod(WEB)
    registry.add_pod(sandbox(DB, "db"))
    assert registry.pod("ab").id == DB


@pytest.mark.parametrize("phase", [SandboxPhase.READY, SandboxPhase.STOPPED, SandboxPhase.REMOVING])
def test_a_pod_is_found_until_it_is_gone(registry: Registry, phase: SandboxPhase) -> None:
    pod = registry.add_pod(sandbox(phase=phase))
    assert registry.pod(WEB) is pod
    registry.drop_pod(pod)
    with pytest.raises(NotFound):
        registry.pod(WEB)


def test_a_container_is_found_by_its_beginning_and_leads_to_its_pod(registry: Registry) -> None:
    pod = registry.add_pod(sandbox())
    made = registry.add_container(container())
    with pytest.raises(NotFound, match=r"^container 'cd' does not exist$"):
        registry.container("cd")  # not yet complete
    registry.save_container(made, made.value)
    assert registry.container("cd") is made
    assert registry.pod_of(made) is pod


def test_a_pods_containers_go_with_it(registry: Registry, store: Store) -> None:
    pod = registry.add_pod(sandbox())
    made = registry.add_container(container())
    registry.save_container(made, made.value)
    registry.drop_pod(pod)
    with pytest.raises(NotFound, match=r"^container 'cd' does not exist$"):
        registry.container("cd")
    assert (registry.containers(), store.containers()) == ([], [])


def test_forgetting_twice_is_fine(registry: Registry) -> None:
    pod = registry.add_pod(sandbox())
    made = registry.add_container(container())
    for _ in range(2):
        registry.drop_container(made)
    for _ in range(2):
        registry.drop_pod(pod)


def test_a_name_that_is_taken_is_told_with_the_id_of_who_has_it(registry: Registry, store: Store) -> None:
    registry.add_pod(sandbox(WEB))
    with pytest.raises(AlreadyExists) as caught:
        registry.add_pod(sandbox(DB))
    assert str(caught.value) == f"config.metadata: pod sandbox web_shop_1_0 exists already, its id is {WEB}"
    assert [each.id for each in store.sandboxes()] == [WEB]


def test_a_containers_name_is_taken_for_one_attempt(registry: Registry) -> None:
    registry.add_pod(sandbox())
    registry.add_container(container())
    registry.add_container(container(ContainerId("cd2"), attempt=1))
    with pytest.raises(AlreadyExists) as caught:
        registry.add_container(container(ContainerId("cd3"), attempt=0))
    words = f"config.metadata: container main (attempt 0) exists already in the pod, its id is {MAIN}"
    assert str(caught.value) == words


def test_a_later_daemon_knows_the_pods_and_containers_of_the_earlier_one(
    registry: Registry, store: Store, tmp_path: Path
) -> None:
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
    return PodEntry(replace(value, config=config, vmid=Vmid(900_007)), tmp_path / WEB)


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
    assert namespaces.cgroup == "/lxc/900007/conmon"
    assert namespaces.container_cgroup(MAIN) == f"/lxc/900007/{MAIN}"


def test_a_pod_with_the_nodes_pid_namespace_is_reached_where_the_daemon_is(tmp_path: Path) -> None:
    namespaces = live(NamespaceOptions(pid=NamespaceMode.NODE), tmp_path).namespaces
    assert (namespaces.pid, namespaces.depth) == (None, 0)
