# SPDX-License-Identifier: Apache-2.0
"""The images of a node for `pvecri image`: by the daemon if it runs, else in the store, opened by this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Protocol

from pvecri import daemon
from pvecri.config.settings import Config, ConfigError
from pvecri.errors import FailedPrecondition, NotFound
from pvecri.images import placement
from pvecri.images.drivers import make_driver
from pvecri.images.drivers.base import LayerKey
from pvecri.images.image_mounts import ImageMounts
from pvecri.images.manager import ImageManager
from pvecri.images.pull.progress import Progress
from pvecri.linux import single_instance
from pvecri.model import Image, ImageId


class Images(Protocol):
    """Images, by the daemon or in an open store."""

    async def list(self) -> tuple[Image, ...]:
        """All images."""
        ...

    async def inspect(self, reference: str) -> tuple[Image, dict[str, Any]] | None:
        """An image with its `images.inspection`; None if there is none of this name, ID or prefix of an ID."""
        ...

    async def pull(self, reference: str) -> ImageId:
        """Pull an image; its ID."""
        ...

    async def remove(self, reference: str) -> None:
        """Remove an image. Idempotent."""
        ...


class _OpenStore:
    """An image store in this process."""

    def __init__(self, manager: ImageManager) -> None:
        self._manager = manager

    async def list(self) -> tuple[Image, ...]:
        return self._manager.list()

    async def inspect(self, reference: str) -> tuple[Image, dict[str, Any]] | None:
        image = self._manager.find(reference)
        return (image, await self._manager.inspect(image.id)) if image else None

    async def pull(self, reference: str) -> ImageId:
        return (await self._manager.pull(reference)).id

    async def remove(self, reference: str) -> None:
        await self._manager.remove(reference)


@asynccontextmanager
async def open_images(config: Config) -> AsyncIterator[tuple[Images, Callable[[], Progress]]]:
    """The daemon's images, or those of the store, and a pull's progress, which the CRI does not report."""
    async with AsyncExitStack() as stack:
        if single_instance.listens(config.runtime.socket):
            from pvecri.cri import client  # only here: the daemon has no use for the stubs

            yield await stack.enter_async_context(client.connected(config.runtime.socket)), Progress
        else:
            manager = await stack.enter_async_context(open_store(config))
            yield _OpenStore(manager), lambda: manager.progress


@asynccontextmanager
async def open_store(config: Config) -> AsyncIterator[ImageManager]:
    """The image store, opened as by the daemon; FailedPrecondition while the daemon runs."""
    async with AsyncExitStack() as stack:
        try:
            await daemon.lock(config, stack)
        except ConfigError as error:
            raise FailedPrecondition(f"{error}; stop it for this command: pods keep running without it") from None
        manager = ImageManager(placement.remembered(config))
        await manager.start()
        stack.push_async_callback(manager.close)
        # Runs before `close`: what the command has removed is deleted from the disk when it returns.
        stack.push_async_callback(manager.idle)
        yield manager


async def find(images: Images, reference: str) -> tuple[Image, dict[str, Any]]:
    """An image with its `images.inspection`; NotFound."""
    found = await images.inspect(reference)
    if found is None:
        raise NotFound(f"image {reference} is not in the store")
    return found


def image_mounts(config: Config) -> ImageMounts:
    """The images that are mounted for people."""
    placed = placement.remembered(config)
    return ImageMounts(placed.images_root / "mounts", make_driver(placed.images, placed.images_root))


def layers(found: dict[str, Any]) -> list[LayerKey]:
    """The layers of an inspected image's root filesystem, lowest first; FailedPrecondition for an artifact."""
    if "manifest" in found:
        raise FailedPrecondition("it is an OCI artifact, not an image; use `skopeo copy`")
    return [LayerKey(key) for key in found["storage"]["stack"]]


def stack_of(images: Images, image: ImageId) -> Callable[[], list[LayerKey]]:
    """A function for a worker thread that asks for the image's layers; it raises as `find` and `layers`."""
    loop = asyncio.get_running_loop()

    def stack() -> list[LayerKey]:
        _, found = asyncio.run_coroutine_threadsafe(find(images, image), loop).result()
        return layers(found)

    return stack
