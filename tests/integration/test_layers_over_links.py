# SPDX-License-Identifier: Apache-2.0
"""Layers whose archives have files below a path that is a symlink, or no directory, only in a lower layer."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from support.image_builder import LayerBuilder, build_image, digest_of
from support.images import DRIVERS, files_of, image_manager, image_root, image_storage
from support.registry import Registry

from pvecri.images.manager import ImageManager
from pvecri.images.manifest import BadImage

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacking needs root")

CONTAINER = "c" * 64


def merged() -> LayerBuilder:
    """A layer of a merged-/usr image."""
    layer = LayerBuilder().directory("usr").directory("usr/lib", mode=0o751, uid=7)
    return layer.file("usr/lib/old", "old").symlink("lib", "usr/lib")


def layer() -> LayerBuilder:
    return LayerBuilder()


SHAPES: dict[str, tuple[tuple[LayerBuilder, ...], dict[str, str]]] = {
    "relative": (
        (merged(), layer().file("lib/x", "x")),
        {"lib": "-> usr/lib", "usr/lib/old": "old", "usr/lib/x": "x"},
    ),
    "absolute": (
        (layer().directory("usr/lib").symlink("lib", "/usr/lib"), layer().file("lib/x", "x")),
        {"lib": "-> /usr/lib", "usr/lib/x": "x"},
    ),
    "nested": (
        (merged(), layer().file("lib/a/b/x", "x")),
        {"lib": "-> usr/lib", "usr/lib/old": "old", "usr/lib/a/b/x": "x"},
    ),
    "chain over three layers": (
        (
            layer().directory("usr/lib").file("usr/lib/old", "old"),
            layer().symlink("lib64", "usr/lib"),
            layer().symlink("lib", "lib64"),
            layer().file("lib/x", "x"),
        ),
        {"lib": "-> lib64", "lib64": "-> usr/lib", "usr/lib/old": "old", "usr/lib/x": "x"},
    ),
    "link below a link": (
        (
            merged().symlink("usr/lib/dir", "../share"),
            layer().file("usr/share/old", "old"),
            layer().file("lib/dir/x", "x"),
        ),
        {
            "lib": "-> usr/lib",
            "usr/lib/dir": "-> ../share",
            "usr/lib/old": "old",
            "usr/share/old": "old",
            "usr/share/x": "x",
        },
    ),
    "out of the root": (
        (layer().directory("etc").symlink("lib", "../../../etc"), layer().file("lib/x", "x")),
        {"lib": "-> ../../../etc", "etc/x": "x"},
    ),
    "to the root": ((layer().symlink("lib", "/"), layer().file("lib/x", "x")), {"lib": "-> /", "x": "x"}),
    "dangling": (
        (layer().symlink("lib", "usr/lib"), layer().file("lib/x", "x")),
        {"lib": "-> usr/lib", "usr/lib/x": "x"},
    ),
    "to a file": (
        (layer().file("f", "f").symlink("lib", "f"), layer().file("lib/x", "x")),
        {"f": "f", "lib/x": "x"},
    ),
    "to below a file": (
        (layer().file("f", "f").symlink("lib", "f/y"), layer().file("lib/x", "x")),
        {"f": "f", "lib/x": "x"},
    ),
    "a file": ((layer().file("f", "f"), layer().file("f/a/x", "x")), {"f/a/x": "x"}),
    "hard links": (
        (merged(), layer().file("lib/y", "y").hardlink("lib/x", "lib/y").hardlink("z", "lib/y")),
        {"lib": "-> usr/lib", "usr/lib/old": "old", "usr/lib/x": "y", "usr/lib/y": "y", "z": "y"},
    ),
    "whiteout": (
        (merged().file("usr/lib/kept"), layer().file("lib/.wh.old")),
        {"lib": "-> usr/lib", "usr/lib/kept": ""},
    ),
    "opaque mark": (
        (merged(), layer().file("lib/.wh..wh..opq").file("lib/x", "x")),
        {"lib": "-> usr/lib", "usr/lib/x": "x"},
    ),
    "replaced file": (
        (merged(), layer().file("lib/old", "new")),
        {"lib": "-> usr/lib", "usr/lib/old": "new"},
    ),
    "both paths": (
        (
            merged(),
            layer().file("usr/lib/a", "a").file("lib/a", "again").file("lib/b", "b").file("usr/lib/b", "again"),
        ),
        {"lib": "-> usr/lib", "usr/lib/old": "old", "usr/lib/a": "again", "usr/lib/b": "again"},
    ),
    "layers on top": (
        (
            merged(),
            layer().file("lib/x", "x"),
            layer().file("lib/x", "newer").file("usr/lib/.wh.old"),
            layer().file("lib/y"),
        ),
        {"lib": "-> usr/lib", "usr/lib/x": "newer", "usr/lib/y": ""},
    ),
    "explicit directory": (
        (merged(), layer().directory("lib").file("lib/x", "x")),
        {"usr/lib/old": "old", "lib/x": "x"},
    ),
    "link that is whited out": (
        (merged(), layer().file(".wh.lib").file("lib/x", "x")),
        {"usr/lib/old": "old", "lib/x": "x"},
    ),
    "link that a layer between replaced": (
        (merged(), layer().directory("lib").file("lib/x", "x"), layer().file("lib/y", "y")),
        {"usr/lib/old": "old", "lib/x": "x", "lib/y": "y"},
    ),
    "link that a layer between whited out": (
        (merged(), layer().file(".wh.lib"), layer().file("lib/y", "y")),
        {"usr/lib/old": "old", "lib/y": "y"},
    ),
    "link below an opaque directory": (
        (
            layer().directory("d").symlink("d/lib", "/usr/lib"),
            layer().directory("d").file("d/.wh..wh..opq"),
            layer().file("d/lib/x", "x"),
        ),
        {"d/lib/x": "x"},
    ),
    "own link to a link below": (
        (
            layer().directory("sys/usr").symlink("usr", "sys/usr"),
            layer().symlink("lib", "usr/lib").file("lib/x", "x"),
        ),
        {"lib": "-> usr/lib", "usr": "-> sys/usr", "sys/usr/lib/x": "x"},
    ),
}


@pytest.fixture
def root() -> Iterator[Path]:
    with image_root() as directory:
        yield directory


@pytest.fixture
async def manager(root: Path, registry: Registry) -> AsyncIterator[ImageManager]:
    async with image_manager(root, registry) as manager:
        yield manager


@pytest.mark.parametrize("driver", DRIVERS)
async def test_files_are_where_the_links_of_lower_layers_lead(
    root: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch, driver: str
) -> None:
    with image_storage(driver, root, monkeypatch) as storage:
        place = Path(str(storage.pop("root")))
        async with image_manager(place, registry, **storage) as manager:
            found = {}
            for number, (shape, (layers, _)) in enumerate(SHAPES.items()):
                built = build_image(*(each.build() for each in layers))
                found[shape] = await files_of(
                    manager, await manager.pull(registry.push(f"shape{number}", "1", built))
                )
    assert found == {shape: expected for shape, (_, expected) in SHAPES.items()}


@pytest.mark.parametrize("driver", DRIVERS)
async def test_loop_of_links_over_layers_is_refused(
    root: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch, driver: str
) -> None:
    layers = layer().symlink("a", "b").build(), layer().symlink("b", "a").build(), layer().file("a/x").build()
    reference = registry.push("loop", "1", build_image(*layers))
    with image_storage(driver, root, monkeypatch) as storage:
        async with image_manager(Path(str(storage.pop("root"))), registry, **storage) as manager:
            with pytest.raises(BadImage, match="Too many levels of symbolic links"):
                await manager.pull(reference)
            await manager.idle()
            assert (await manager.usage()).images.inodes_used == 0


async def test_directory_behind_the_link_keeps_its_attributes(manager: ImageManager, registry: Registry) -> None:
    image = await manager.pull(
        registry.push("app", "1", build_image(merged().build(), layer().file("lib/x", "x").build()))
    )
    path = await manager.prepare_rootfs(CONTAINER, image.id, userns=None, root_uid=0, root_gid=0)
    found = (path / "usr/lib").stat()
    assert (found.st_mode & 0o7777, found.st_uid) == (0o751, 7)


async def test_same_layer_over_other_layers_is_another(
    manager: ImageManager, registry: Registry, root: Path
) -> None:
    """In each order of the pulls."""
    plain, top = layer().directory("lib").build(), layer().file("lib/x", "x").build()
    over_link, over_directory = build_image(merged().build(), top), build_image(plain, top)
    link = {"lib": "-> usr/lib", "usr/lib/old": "old", "usr/lib/x": "x"}
    for names in (("link", "directory"), ("directory", "link")):
        images = {}
        for name in names:
            built = over_link if name == "link" else over_directory
            images[name] = await manager.pull(registry.push(name, "1", built))
        await manager.idle()
        assert await files_of(manager, images["link"]) == link
        assert await files_of(manager, images["directory"]) == {"lib/x": "x"}
        assert len(list((root / "overlay/layers").iterdir())) == 5  # with a layer for the mode of usr/lib
        for image in images.values():
            await manager.remove(image.id)
        await manager.idle()
        assert list((root / "overlay/layers").iterdir()) == []


async def test_only_the_layer_that_is_used_is_kept(manager: ImageManager, registry: Registry, root: Path) -> None:
    top = layer().file("lib/x", "x").build()
    images = [
        await manager.pull(registry.push(name, "1", build_image(merged().file(name).build(), top)))
        for name in ("one", "two")
    ]
    await manager.idle()
    kept = {path.name for path in (root / "overlay/layers").iterdir()}
    assert digest_of(top).removeprefix("sha256:") not in kept
    assert len(kept) == 4  # both bases, one variant of the top layer, one layer for the mode of usr/lib
    await manager.remove(images[0].id)
    assert (await files_of(manager, images[1]))["usr/lib/x"] == "x"


async def test_variant_survives_restart_check_and_removal_of_the_image(root: Path, registry: Registry) -> None:
    built = build_image(merged().build(), layer().file("lib/x", "x").build())
    reference = registry.push("app", "1", built)
    async with image_manager(root, registry) as manager:
        image = await manager.pull(reference)
        path = await manager.prepare_rootfs(CONTAINER, image.id, userns=None, root_uid=0, root_gid=0)
    async with image_manager(root, registry) as manager:
        assert manager.list() == (image,)
        assert [found async for found in manager.check(repair=True)] == []
        await manager.remove(image.id)
        await manager.idle()
        await manager.unmount_rootfs(CONTAINER)
        await manager.mount_rootfs(CONTAINER, None)
        assert (path / "lib/x").read_text() == "x"
        await manager.remove_rootfs(CONTAINER)
        await manager.idle()
        assert list((root / "overlay/layers").iterdir()) == []


async def test_pulls_that_need_the_same_variant_run_concurrently(
    manager: ImageManager, registry: Registry
) -> None:
    top = layer().file("lib/x", "x").build()
    references = [
        registry.push(f"app{number}", "1", build_image(merged().file(f"of{number}").build(), top))
        for number in range(4)
    ]
    for number, image in enumerate(await asyncio.gather(*map(manager.pull, references))):
        found = await files_of(manager, image)
        assert (found["usr/lib/x"], found[f"of{number}"]) == ("x", "")


async def test_more_links_than_the_worker_takes_are_refused(manager: ImageManager, registry: Registry) -> None:
    low, high = layer(), layer()
    for number in range(1000):
        low.symlink(f"{number}-{'x' * 60}", "usr")
        high.file(f"{number}-{'x' * 60}/{number}")
    with pytest.raises(BadImage, match="too many directories that are symlinks in lower layers"):
        await manager.pull(registry.push("many", "1", build_image(low.build(), high.build())))
    await manager.idle()
    assert manager.list() == ()
