# SPDX-License-Identifier: Apache-2.0
"""Image Managers on storage of their own, for tests."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import mkdtemp

import pytest
from msgspec.structs import replace
from support.filesystems import btrfs_filesystem
from support.leaks import PREFIX
from support.registry import Registry
from support.simulated_zfs import SimulatedZfs

from pvecri.config.settings import Config, ImagesConfig
from pvecri.images.manager import ImageManager
from pvecri.linux import mounts
from pvecri.model import Image


@contextmanager
def image_root() -> Iterator[Path]:
    """A directory that mapped roots can pass, which pytest's own are not; mounts below it go with it."""
    directory = Path(mkdtemp(prefix=f"{PREFIX}images-"))
    directory.chmod(0o711)
    try:
        yield directory
    finally:
        mounts.umount_below(directory)
        subprocess.run(["rm", "-rf", str(directory)], check=True)


_CONTAINER = "f" * 64
DRIVERS = ("overlay", "raw", "btrfs", "zfs")


@contextmanager
def image_storage(driver: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, object]]:
    """The settings of the section `images` for storage of this driver below `directory`; ZFS is simulated."""
    if driver == "btrfs":
        with btrfs_filesystem(directory) as place:
            yield {"driver": driver, "root": place}
        return
    if driver == "zfs":
        SimulatedZfs(directory / "simulated", monkeypatch)
    yield {"driver": driver, "root": directory, "dataset": "tank/pvecri"}


async def files_of(manager: ImageManager, image: Image) -> dict[str, str]:
    """The files of an image, as a container sees them, and the targets of its links; with no directories."""
    path = await manager.prepare_rootfs(_CONTAINER, image.id, userns=None, root_uid=0, root_gid=0)
    found = {
        str(each.relative_to(path)): f"-> {each.readlink()}" if each.is_symlink() else each.read_text()
        for each in path.rglob("*")
        if each.is_symlink() or not each.is_dir()
    }
    await manager.remove_rootfs(_CONTAINER)
    return found


@asynccontextmanager
async def image_manager(root: Path, registry: Registry, **settings: object) -> AsyncIterator[ImageManager]:
    """A started manager that may pull from `registry`; `settings` are those of the section `images`."""
    images = ImagesConfig(root=root, insecure_registries=(registry.address,))
    manager = ImageManager(Config(images=replace(images, **settings)))
    await manager.start()
    try:
        yield manager
    finally:
        await manager.close()
