# SPDX-License-Identifier: Apache-2.0
"""OCI artifacts: pulled from a real registry with the real skopeo, and mounted. Needs root."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from support.faulty_registry import Fault, faulty_registry
from support.image_builder import (
    PLATFORM,
    LayerBuilder,
    build_artifact,
    build_image,
    build_index,
    digest_of,
    gzipped,
)
from support.images import DRIVERS, image_manager, image_root, image_storage
from support.registry import PASSWORD, USER, Registry, running_registry
from support.userns import user_namespace

from pvecri.errors import PermissionDenied, Unavailable
from pvecri.images.manager import ImageManager
from pvecri.images.manifest import BadImage
from pvecri.linux import mounts
from pvecri.model import Image, RegistryAuth

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="extracting needs root")

VOLUME = "c" * 64 + ".0"
FILES = (("model.bin", b"\x1f\x8bweights"), ("sub/path/größe", b"2"), ("sub/3", b"3"))


@pytest.fixture
def root() -> Iterator[Path]:
    with image_root() as directory:
        yield directory


@pytest.fixture
async def manager(root: Path, registry: Registry) -> AsyncIterator[ImageManager]:
    async with image_manager(root, registry) as manager:
        yield manager


@pytest.fixture(params=DRIVERS)
def storage(
    request: pytest.FixtureRequest, root: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, object]]:
    with image_storage(request.param, root, monkeypatch) as settings:
        yield settings


async def mount(manager: ImageManager, image: Image, userns: Path | None = None) -> Path:
    owner = 300_000 if userns else 0
    return await manager.prepare_rootfs(VOLUME, image.id, userns=userns, root_uid=owner, root_gid=owner)


async def content(manager: ImageManager, image: Image) -> dict[str, bytes]:
    path = await mount(manager, image)
    found = {str(each.relative_to(path)): each.read_bytes() for each in path.rglob("*") if each.is_file()}
    await manager.remove_rootfs(VOLUME)
    return found


async def left(manager: ImageManager, root: Path) -> list[Path]:
    """What is left of layers and manifests after the background work."""
    await manager.idle()
    places = (root / "overlay/layers", root / "overlay/new", root / "tmp", root / "blobs/sha256")
    return [path for place in places for path in place.iterdir()]


async def test_artifact_is_mounted_on_every_storage(storage: dict[str, object], registry: Registry) -> None:
    built = build_artifact(*FILES)
    reference = registry.push("models/one", "1", built)
    settings = {name: value for name, value in storage.items() if name != "root"}
    async with image_manager(Path(str(storage["root"])), registry, **settings) as manager:
        image = await manager.pull(reference)
        with user_namespace(first_id=300_000) as userns:
            path = await mount(manager, image, userns)
            files = {str(each.relative_to(path)): each for each in path.rglob("*") if each.is_file()}
            assert {name: each.read_bytes() for name, each in files.items()} == dict(FILES)
            assert {(each.stat().st_uid, each.stat().st_mode) for each in files.values()} == {(300_000, 0o100644)}
            assert {each.stat().st_mode for each in (path, path / "sub", path / "sub/path")} == {0o40755}
            await manager.remove_rootfs(VOLUME)
        await manager.remove(reference)
        await manager.idle()
        assert (await manager.usage()).images.inodes_used == 0


async def test_artifact_is_listed_with_the_digest_of_its_manifest(
    manager: ImageManager, registry: Registry
) -> None:
    built = build_artifact(*FILES)
    reference = registry.push("models/one", "1", built)
    image = await manager.pull(reference)
    assert (image.id, image.tags) == (built.digest, (reference,))
    assert image.digests == (f"{registry.address}/models/one@{built.digest}",)
    assert (image.size, image.diff_ids) == (2 + sum(len(data) for _, data in FILES), ())
    assert image.artifact_type == "application/vnd.example.model"
    assert manager.raw_config(image.id) == built.manifest
    for name in (reference, built.digest, image.digests[0], image.id.removeprefix("sha256:")[:13]):
        assert manager.find(name) == image


async def test_artifacts_with_the_same_config_and_files_are_two(manager: ImageManager, registry: Registry) -> None:
    one = await manager.pull(registry.push("one", "1", build_artifact(("a", b"1"), artifact_type="x/one")))
    two = await manager.pull(registry.push("two", "1", build_artifact(("a", b"1"), artifact_type="x/two")))
    assert one.id != two.id
    await manager.remove(one.id)
    assert await content(manager, two) == {"a": b"1"}


async def test_archives_are_not_extracted(manager: ImageManager, registry: Registry) -> None:
    archive = gzipped(LayerBuilder().file("../evil").build())
    built = build_artifact(
        ("charts.tgz", archive),
        artifact_type=None,
        config=("application/vnd.cncf.helm.config.v1+json", b'{"name": "chart"}'),
        layer_type="application/vnd.oci.image.layer.v1.tar+gzip",
    )
    assert await content(manager, await manager.pull(registry.push("chart", "1", built))) == {
        "charts.tgz": archive
    }


async def test_artifact_without_files_is_an_empty_directory(manager: ImageManager, registry: Registry) -> None:
    assert await content(manager, await manager.pull(registry.push("empty", "1", build_artifact()))) == {}


async def test_artifact_in_an_index_is_that_of_this_platform(manager: ImageManager, registry: Registry) -> None:
    index = build_index(("s390x", build_artifact(("a", b"other"))), (PLATFORM, build_artifact(("a", b"ours"))))
    image = await manager.pull(registry.push("tool", "1", index))
    assert await content(manager, image) == {"a": b"ours"}
    assert image.digests == (f"{registry.address}/tool@{index.digest}",)


async def test_file_of_another_artifact_is_not_fetched_again(manager: ImageManager, registry: Registry) -> None:
    large = ("large", b"x" * 1_000_000)
    await manager.pull(registry.push("model", "1", build_artifact(large, ("config", b"1"))))
    await manager.idle()
    reference = registry.push("model", "2", build_artifact(large, ("config", b"2")))
    registry.forget_blobs(digest_of(large[1]))
    assert await content(manager, await manager.pull(reference)) == {"large": large[1], "config": b"2"}


async def test_blob_may_be_an_images_layer_and_an_artifacts_file(
    manager: ImageManager, registry: Registry
) -> None:
    layer = LayerBuilder().file("f", "x").build()
    image, artifact = build_image(layer), build_artifact(("layer.tgz", gzipped(layer)), ("again", gzipped(layer)))
    first = await manager.pull(registry.push("image", "1", image))
    second = await manager.pull(registry.push("artifact", "1", artifact))
    assert await content(manager, second) == {"layer.tgz": gzipped(layer), "again": gzipped(layer)}
    await manager.remove(first.id)
    assert await content(manager, await manager.pull(registry.push("image", "1", image))) == {"f": b"x"}


async def test_moved_tag_names_the_new_artifact(manager: ImageManager, registry: Registry) -> None:
    old = await manager.pull(registry.push("model", "1", build_artifact(("a", b"1"))))
    reference = registry.push("model", "1", build_artifact(("a", b"2")))
    new = await manager.pull(reference)
    assert (manager.find(reference), manager.get(old.id).tags) == (new, ())


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd"])
async def test_name_that_leads_elsewhere_is_refused_before_anything_is_fetched(
    manager: ImageManager, registry: Registry, root: Path, name: str
) -> None:
    built = build_artifact(("good", b"1"), (name, b"evil"))
    reference = registry.push("evil", "1", built)
    registry.forget_blobs(digest_of(b"1"), digest_of(b"evil"))
    with pytest.raises(BadImage, match="its file name"):
        await manager.pull(reference)
    assert await left(manager, root) == []


async def test_file_larger_than_the_limit_is_refused_with_the_setting(root: Path, registry: Registry) -> None:
    reference = registry.push("large", "1", build_artifact(("small", b"1"), ("large", b"x" * 10_000)))
    async with image_manager(root, registry, max_layer_size=9_999) as manager:
        with pytest.raises(BadImage, match=r"larger than 9999 bytes \(images\.max_layer_size\)"):
            await manager.pull(reference)
        assert await left(manager, root) == []


# -- the registry ----------------------------------------------------------------------------------------------


async def test_artifact_of_a_protected_registry_needs_credentials(root: Path, tmp_path: Path) -> None:
    with running_registry(tmp_path, protected=True) as protected:
        reference = protected.push("model", "1", build_artifact(("a", b"1")))
        async with image_manager(root, protected) as manager:
            with pytest.raises(PermissionDenied):
                await manager.pull(reference)
            auth = RegistryAuth(username=USER, password=PASSWORD)
            assert await content(manager, await manager.pull(reference, auth)) == {"a": b"1"}


@pytest.mark.parametrize("accepted", [False, True])
async def test_signature_policy_applies_to_artifacts(
    root: Path, registry: Registry, tmp_path: Path, *, accepted: bool
) -> None:
    policy = tmp_path / "policy.json"
    scope = {registry.address: [{"type": "insecureAcceptAnything"}]} if accepted else {}
    policy.write_text(json.dumps({"default": [{"type": "reject"}], "transports": {"docker": scope}}))
    reference = registry.push("model", "1", build_artifact(*FILES))
    async with image_manager(root, registry, policy=policy) as manager:
        if accepted:
            assert await content(manager, await manager.pull(reference)) == dict(FILES)
        else:
            with pytest.raises(PermissionDenied, match=r"^SignatureValidationFailed: "):
                await manager.pull(reference)
            assert await left(manager, root) == []


async def test_interrupted_file_is_fetched_again(root: Path, registry: Registry) -> None:
    data = os.urandom(2 << 20)
    registry.push("model", "1", build_artifact(("a", data)))
    with faulty_registry(registry.address) as faulty:
        async with image_manager(root, registry, insecure_registries=(faulty.address,)) as manager:
            faulty.fail(digest_of(data), Fault(cut=1_000_000, times=1))
            image = await manager.pull(f"{faulty.address}/model:1")
            assert await content(manager, image) == {"a": data}
            await manager.remove(image.id)
            faulty.fail(digest_of(data), Fault(cut=1_000_000))
            with pytest.raises(Unavailable):
                await manager.pull(f"{faulty.address}/model:1")
            assert await left(manager, root) == []


async def test_corrupt_file_is_refused(manager: ImageManager, registry: Registry, root: Path) -> None:
    reference = registry.push("model", "1", build_artifact(("a", b"12345")))
    registry.corrupt_blob(digest_of(b"12345"), b"54321")
    with pytest.raises(Exception, match=digest_of(b"12345").removeprefix("sha256:")):
        await manager.pull(reference)
    assert await left(manager, root) == []


# -- life ------------------------------------------------------------------------------------------------------


async def test_artifact_survives_a_restart(root: Path, registry: Registry) -> None:
    reference = registry.push("model", "1", build_artifact(*FILES))
    async with image_manager(root, registry) as manager:
        image = await manager.pull(reference)
        path = await mount(manager, image)
    async with image_manager(root, registry) as manager:
        assert manager.list() == (image,)
        assert (path / "model.bin").read_bytes() == FILES[0][1]
        await manager.remove_rootfs(VOLUME)
        assert await content(manager, image) == dict(FILES)


async def test_removed_artifact_stays_mounted(manager: ImageManager, registry: Registry, root: Path) -> None:
    image = await manager.pull(registry.push("model", "1", build_artifact(*FILES)))
    path = await mount(manager, image)
    await manager.remove(image.id)
    await manager.idle()
    assert (manager.list(), (path / "sub/3").read_bytes()) == ((), b"3")
    await manager.unmount_rootfs(VOLUME)
    await manager.mount_rootfs(VOLUME, None)
    assert (path / "sub/3").read_bytes() == b"3"
    await manager.remove_rootfs(VOLUME)
    assert await left(manager, root) == []
    assert not any(entry.mountpoint == path for entry in mounts.mounts())


async def test_cancelled_pull_of_an_artifact_leaves_nothing(
    manager: ImageManager, registry: Registry, root: Path
) -> None:
    reference = registry.push("model", "1", build_artifact(("a", os.urandom(8 << 20)), ("b", b"1")))
    pull = asyncio.ensure_future(manager.pull(reference))
    while not list((root / "overlay/new").iterdir()) and not pull.done():
        await asyncio.sleep(0)
    pull.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pull
    assert await left(manager, root) == []


async def test_damaged_manifest_of_an_artifact_is_found(
    manager: ImageManager, registry: Registry, root: Path
) -> None:
    image = await manager.pull(registry.push("model", "1", build_artifact(*FILES)))
    (root / "blobs/sha256" / image.id.removeprefix("sha256:")).write_bytes(b"{}")
    found = [each async for each, _ in manager.check(repair=True)]
    assert [each.images for each in found] == [(image.id,)]
    assert await left(manager, root) == []
