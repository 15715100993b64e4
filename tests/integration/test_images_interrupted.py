# SPDX-License-Identifier: Apache-2.0
"""Pulls from a registry whose blobs fail on the way, with the real skopeo. Needs root."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from support.faulty_registry import Fault, FaultyRegistry, faulty_registry
from support.image_builder import BuiltImage, LayerBuilder, build_image, digest_of
from support.images import image_manager, image_root
from support.registry import Registry

from pvecri.errors import CommandError, NotFound, PermissionDenied, PvecriError, Unavailable
from pvecri.images.manager import ImageManager
from pvecri.images.manifest import BadImage
from pvecri.images.pull.repeat import ATTEMPTS

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacking needs root")

CONTENT = os.urandom(2 << 20)
LARGE = LayerBuilder().file("large", CONTENT).build()
SMALL = LayerBuilder().file("small", "content").build()


@pytest.fixture
def root() -> Iterator[Path]:
    with image_root() as directory:
        yield directory


@pytest.fixture
def faulty(registry: Registry) -> Iterator[FaultyRegistry]:
    with faulty_registry(registry.address) as proxy:
        yield proxy


@pytest.fixture
async def manager(root: Path, registry: Registry, faulty: FaultyRegistry) -> AsyncIterator[ImageManager]:
    async with image_manager(root, registry, insecure_registries=(faulty.address,)) as manager:
        yield manager


def push(registry: Registry, faulty: FaultyRegistry, built: BuiltImage) -> str:
    """The image's reference by way of the proxy."""
    registry.push("shop/web", "1", built)
    return f"{faulty.address}/shop/web:1"


async def left(manager: ImageManager, root: Path) -> list[Path]:
    """What is left of extracted layers after the background work."""
    await manager.idle()
    return [path for name in ("layers", "new") for path in (root / "overlay" / name).iterdir()]


PASSING = {
    "cut at the start": Fault(cut=0),
    "cut in the header": Fault(cut=5),
    "cut": Fault(cut=1_000_000),
    "reset": Fault(cut=1_000_000, reset=True),
    "empty": Fault(cut=0, short=True),
    "short in the header": Fault(cut=5, short=True),
    "short": Fault(cut=1_000_000, short=True),
    "500": Fault(500),
    "502": Fault(502),
    "503": Fault(503),
    "504": Fault(504),
    "408": Fault(408),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
async def test_layer_whose_fetch_was_interrupted_is_fetched_again(
    manager: ImageManager, registry: Registry, faulty: FaultyRegistry, root: Path, fault: Fault
) -> None:
    built = build_image(LARGE, SMALL)
    reference = push(registry, faulty, built)
    faulty.fail(digest_of(built.layers[0]), fault._replace(times=1))
    image = await manager.pull(reference)
    assert image.id == built.id
    path = await manager.prepare_rootfs("c" * 64, image.id, userns=None, root_uid=0, root_gid=0)
    assert ((path / "large").read_bytes(), (path / "small").read_text()) == (CONTENT, "content")
    await manager.remove_rootfs("c" * 64)
    assert [faulty.requests[digest_of(layer)] for layer in built.layers] == [2, 1]
    assert len(await left(manager, root)) == 2


@pytest.mark.parametrize("docker", [False, True])
@pytest.mark.parametrize(
    "fault", [Fault(cut=20), Fault(cut=20, reset=True), Fault(cut=20, short=True), Fault(503)], ids=str
)
async def test_config_whose_fetch_was_interrupted_is_fetched_again(
    manager: ImageManager, registry: Registry, faulty: FaultyRegistry, fault: Fault, docker: bool
) -> None:
    built = build_image(SMALL, docker=docker)
    faulty.fail(digest_of(built.config), fault._replace(times=1))
    assert (await manager.pull(push(registry, faulty, built))).id == built.id


@pytest.mark.parametrize("fault", [Fault(cut=1_000_000), Fault(500)], ids=str)
async def test_registry_that_keeps_failing_is_unavailable_after_some_attempts(
    manager: ImageManager, registry: Registry, faulty: FaultyRegistry, root: Path, fault: Fault
) -> None:
    built = build_image(LARGE, SMALL)
    broken = digest_of(built.layers[0])
    faulty.fail(broken, fault)
    reference = push(registry, faulty, built)
    with pytest.raises(Unavailable) as caught:
        await manager.pull(reference)
    message = str(caught.value)
    assert message.startswith(f"RegistryUnavailable: pulling {reference}: ")
    assert message.endswith(f" (layer {broken}, {ATTEMPTS} attempts)")
    assert "\n" not in message
    assert faulty.requests[broken] == ATTEMPTS
    assert await left(manager, root) == []
    faulty.fail(broken, Fault())
    assert (await manager.pull(reference)).id == built.id


@pytest.mark.parametrize("cut", [0, 1_000_000])
async def test_blob_that_stays_wrong_is_a_bad_image_after_some_attempts(
    manager: ImageManager, registry: Registry, faulty: FaultyRegistry, root: Path, cut: int
) -> None:
    built = build_image(LARGE, SMALL)
    broken = digest_of(built.layers[0])
    faulty.fail(broken, Fault(cut=cut, short=True))
    with pytest.raises(BadImage, match=rf"^pulling .*{broken}.* \(layer {broken}, {ATTEMPTS} attempts\)$"):
        await manager.pull(push(registry, faulty, built))
    assert faulty.requests[broken] == ATTEMPTS
    assert await left(manager, root) == []


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, PermissionDenied),
        (403, PermissionDenied),
        (404, NotFound),
        (416, CommandError),
    ],
)
@pytest.mark.parametrize("of_config", [False, True])
async def test_refusal_of_a_blob_is_raised_at_once(
    manager: ImageManager,
    registry: Registry,
    faulty: FaultyRegistry,
    root: Path,
    status: int,
    kind: type[PvecriError],
    of_config: bool,
) -> None:
    built = build_image(LARGE, SMALL)
    broken = digest_of(built.config if of_config else built.layers[0])
    faulty.fail(broken, Fault(status))
    with pytest.raises(kind):
        await manager.pull(push(registry, faulty, built))
    assert faulty.requests[broken] == 1
    assert await left(manager, root) == []


async def test_limit_on_requests_is_unavailable_and_only_skopeo_repeats(
    manager: ImageManager, registry: Registry, faulty: FaultyRegistry
) -> None:
    built = build_image(SMALL)
    broken = digest_of(built.layers[0])
    faulty.fail(broken, Fault(429))
    with pytest.raises(Unavailable, match=r"^RegistryUnavailable: pulling .*too many requests to registry$"):
        await manager.pull(push(registry, faulty, built))
    assert faulty.requests[broken] == 5  # those of skopeo 1.9, which heeds Retry-After


async def test_layer_that_cannot_be_unpacked_is_a_bad_image_at_once(
    manager: ImageManager, registry: Registry, faulty: FaultyRegistry
) -> None:
    built = build_image(b"not an archive" + CONTENT)
    with pytest.raises(BadImage, match="not a tar archive"):
        await manager.pull(push(registry, faulty, built))
    assert faulty.requests[digest_of(built.layers[0])] == 1
