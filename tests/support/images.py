# SPDX-License-Identifier: Apache-2.0
"""Image Managers on storage of their own, for tests."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import mkdtemp

from msgspec.structs import replace
from support.registry import Registry

from pvecri.config import Config, ImagesConfig
from pvecri.images.manager import ImageManager
from pvecri.linux import mounts


@contextmanager
def image_root() -> Iterator[Path]:
    """A directory that mapped roots can pass, which pytest's own are not; mounts below it go with it."""
    directory = Path(mkdtemp(prefix="pvecri-"))
    directory.chmod(0o711)
    try:
        yield directory
    finally:
        mounts.umount_below(directory)
        subprocess.run(["rm", "-rf", str(directory)], check=True)


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
