# SPDX-License-Identifier: Apache-2.0
"""The life of an image, from the registry to a container and its removal, with each driver. Needs root."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.filesystems import btrfs_filesystem
from support.image_builder import LayerBuilder, build_image
from support.images import image_manager, image_root
from support.registry import Registry
from support.userns import user_namespace

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")

CONTAINER = "c" * 64
ROOT = 300_000
BASE = LayerBuilder().directory("bin").file("bin/sh", "shell", uid=5).file("gone").file("d/old")
MIDDLE = LayerBuilder().file(".wh.gone").file("d/.wh..wh..opq").file("d/new", "n")
TOP = LayerBuilder().file("bin/sh", "another shell").directory("tmp", mode=0o1777)
DRIVERS = ["overlay", "raw", "btrfs"]


@pytest.fixture
def root() -> Iterator[Path]:
    with image_root() as directory, btrfs_filesystem(directory) as place:
        yield place


async def program(*command: str) -> str:
    """What it says to standard error."""
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    return (await process.communicate())[1].decode()


def tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


@pytest.mark.parametrize("driver", DRIVERS)
async def test_root_filesystem_is_the_same_with_every_driver(root: Path, registry: Registry, driver: str) -> None:
    low, high = build_image(BASE.build(), MIDDLE.build()), build_image(BASE.build(), MIDDLE.build(), TOP.build())
    async with image_manager(root, registry, driver=driver) as manager:
        await manager.pull(registry.push("low", "1", low))
        image = await manager.pull(registry.push("high", "1", high))
        with user_namespace(first_id=ROOT) as userns:
            path = await manager.prepare_rootfs(CONTAINER, image.id, userns=userns, root_uid=ROOT, root_gid=ROOT)
        assert tree(path) == ["bin", "bin/sh", "d", "d/new", "tmp"]
        assert ((path / "bin/sh").read_text(), (path / "bin/sh").stat().st_uid) == ("another shell", ROOT)
        assert (path / "tmp").stat().st_mode & 0o7777 == 0o1777


@pytest.mark.parametrize("driver", DRIVERS)
async def test_restart_keeps_images_and_roots_and_removal_leaves_nothing(
    root: Path, registry: Registry, driver: str
) -> None:
    reference = registry.push("app", "1", build_image(BASE.build(), MIDDLE.build()))
    async with image_manager(root, registry, driver=driver) as first:
        image = await first.pull(reference)
        path = await first.prepare_rootfs(CONTAINER, image.id, userns=None, root_uid=0, root_gid=0)
        (path / "written").write_text("kept")
    async with image_manager(root, registry, driver=driver) as second:
        assert second.list() == (image,)
        assert (await second.mount_rootfs(CONTAINER, None) / "written").read_text() == "kept"
        await second.remove_rootfs(CONTAINER)
        await second.remove(reference)
        await second.idle()
        for part in ("layers", "rootfs", "new", "trash"):
            assert list((root / driver / part).iterdir()) == []


@pytest.mark.parametrize("driver", DRIVERS)
async def test_usage_names_the_filesystem_of_the_images(root: Path, registry: Registry, driver: str) -> None:
    layer = LayerBuilder().file("large", os.urandom(3 << 20)).build()
    async with image_manager(root, registry, driver=driver) as manager:
        assert (await manager.usage()).images.used_bytes == 0
        await manager.pull(registry.push("app", "1", build_image(layer)))
        usage = (await manager.usage()).images
        assert 3 << 20 <= usage.used_bytes < 4 << 20
        assert Path(usage.mountpoint).stat().st_dev == (root / driver).stat().st_dev


async def test_writable_layer_is_limited_by_the_setting(root: Path, registry: Registry) -> None:
    await program("btrfs", "quota", "enable", str(root))
    reference = registry.push("app", "1", build_image(BASE.build()))
    async with image_manager(root, registry, driver="btrfs", writable_layer_size=16 << 20) as manager:
        image = await manager.pull(reference)
        path = await manager.prepare_rootfs(CONTAINER, image.id, userns=None, root_uid=0, root_gid=0)
        said = await program("dd", "if=/dev/urandom", f"of={path}/f", "bs=1M", "count=32", "conv=fsync")
        assert "quota" in said.lower()
