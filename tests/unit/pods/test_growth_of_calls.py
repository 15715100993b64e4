# SPDX-License-Identifier: Apache-2.0
"""What names one pod, container or image costs the same among few and among many; a list, what it answers with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from msgspec.structs import replace
from support.filled import filled
from support.steps import steps

from pvecri.images.catalog import Catalog
from pvecri.images.store import ImageRecord
from pvecri.linux import cgroups
from pvecri.model import (
    Container,
    ContainerId,
    ContainerMetadata,
    ContainerState,
    FilesystemUsage,
    Image,
    ImageId,
    Sandbox,
    SandboxId,
    SandboxMetadata,
    SandboxPhase,
    Vmid,
)
from pvecri.pods.registry import Registry
from pvecri.pods.store import Store
from pvecri.pods.usage.stats import Statistics
from pvecri.pods.usage.writable_layers import WritableLayers
from pvecri.supervision import Supervisor

FEW, MANY = 10, 200
SANDBOX, CONTAINER = filled(Sandbox), filled(Container)


def metadata(number: int, attempt: int = 0) -> SandboxMetadata:
    return SandboxMetadata(name=f"pod-{number}", namespace="shop", uid=str(number), attempt=attempt)


def sandbox(number: int, attempt: int = 0) -> Sandbox:
    value = SANDBOX
    config = replace(value.config, metadata=metadata(number, attempt), port_mappings=())
    identity = SandboxId(f"{number:032x}{attempt:032x}")
    return replace(
        value, id=identity, config=config, phase=SandboxPhase.READY, vmid=Vmid(0), warm=None, front=None
    )


def container(number: int) -> Container:
    value = CONTAINER
    config = replace(value.config, metadata=ContainerMetadata(name="main"))
    return replace(
        value,
        id=ContainerId(f"{number:064x}"),
        sandbox_id=sandbox(number).id,
        config=config,
        state=ContainerState.RUNNING,
        front=None,
    )


@pytest.fixture
def filled_registry(tmp_path: Path) -> Iterator[Callable[[int], Registry]]:
    stores = []

    def fill(count: int) -> Registry:
        store = Store(tmp_path / f"{count}.db")
        stores.append(store)
        registry = Registry(store, tmp_path)
        for number in range(count):
            registry.add_pod(sandbox(number))
            added = registry.add_container(container(number))
            registry.save_container(added, added.value)
        return registry

    yield fill
    for store in stores:
        store.close()


Filled = Callable[[int], Registry]

CALLS: dict[str, Callable[[Registry], object]] = {
    "pod by id": lambda registry: registry.pod(sandbox(3).id),
    "container by id": lambda registry: registry.container(container(3).id),
    "new pod": lambda registry: registry.add_pod(sandbox(5000)),
    "attempts of a pod": lambda registry: registry.attempts(metadata(3)),
    "pods with host ports": lambda registry: registry.with_host_ports(),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_for_one_pod_costs_the_same_among_many(filled_registry: Filled, name: str) -> None:
    few, many = (steps(partial(CALLS[name], filled_registry(count))) for count in (FEW, MANY))
    assert many == few


def record(number: int) -> ImageRecord:
    digest = f"sha256:{number:064x}"
    tags, digests = (f"registry.test/image:{number}",), (f"registry.test/image@{digest}",)
    image = Image(id=ImageId(digest), tags=tags, digests=digests)
    return ImageRecord(image=image, layers=(), manifests=(digest,))


@pytest.mark.parametrize(
    "name", ["registry.test/image:3", f"registry.test/image@sha256:{3:064x}", f"sha256:{3:064x}", "absent:1"]
)
def test_an_image_is_found_with_the_same_effort_among_many(name: str) -> None:
    few, many = (steps(partial(Catalog(map(record, range(count)), ()).find, name)) for count in (FEW, MANY))
    assert many == few


def test_statistics_of_pods_grow_with_the_number_of_pods_at_most(filled_registry: Filled, tmp_path: Path) -> None:
    async def count_layer(_: str) -> FilesystemUsage:
        return FilesystemUsage(timestamp=1, mountpoint="/", used_bytes=1, inodes_used=1)

    def listed(registry: Registry) -> None:
        layers = WritableLayers(count_layer, Supervisor())
        statistics = Statistics(registry, cgroups.detect(), layers)

        async def answer() -> None:
            found = await statistics.pods(lambda _: True)
            assert [len(each.containers) for each in found] == [1] * len(found)

        asyncio.run(answer())

    sizes = [steps(partial(listed, filled_registry(count))) for count in (MANY // 4, MANY // 2, MANY)]
    # Twice as many more pods cost twice as much more if each costs the same, four times if each looks at all.
    assert sizes[2] - sizes[1] < 2.7 * (sizes[1] - sizes[0])
