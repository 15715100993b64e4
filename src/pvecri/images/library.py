# SPDX-License-Identifier: Apache-2.0
"""What the Image Manager keeps: images, layers and root filesystems, in memory, in the store and on the storage.

What nothing refers to any longer is swept: layers that no image and no root filesystem has, and configs that no
image has. No pull is under way then, for it could be about to refer to them.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from pvecri.concurrency import finish
from pvecri.images.catalog import Catalog
from pvecri.images.configs import Configs
from pvecri.images.drivers.base import LayerKey, RootfsDriver
from pvecri.images.manifest import Layer
from pvecri.images.store import ImageRecord, LayerRecord, RootfsRecord, Store
from pvecri.model import ContainerId, ImageId

log = logging.getLogger(__name__)

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class Library:
    """Open on a `store`, a `driver` and `configs`. For one event loop."""

    def __init__(self, store: Store, driver: RootfsDriver, configs: Configs, pinned: Iterable[str]) -> None:
        self.driver = driver
        self.configs = configs
        self.boot = _BOOT_ID.read_text().strip()
        self.layers: dict[LayerKey, LayerRecord] = {}
        self.rootfs: dict[ContainerId, RootfsRecord] = {}
        self.store = store
        self._dropped: set[ContainerId] = set()
        self._gate = asyncio.Lock()
        self._pulls = 0
        self._pinned = tuple(pinned)
        self.catalog = Catalog((), self._pinned)

    # -- opening and closing -----------------------------------------------------------------------------------

    def load(self) -> None:
        """Read the store and make it and the storage agree: what only one of the two has is dropped. Blocks."""
        on_storage = self.driver.layers()
        layers = {each.key: each for each in self.store.layers()}
        self.layers = {
            key: each for key, each in layers.items() if key in on_storage and each.boot in {"", self.boot}
        }
        self.store.delete_layers(layers.keys() - self.layers.keys())
        self._load_images()
        self._load_rootfs()
        live = self._live_layers()
        self._sweep(live)
        self._keep(live)

    def close(self) -> None:
        self.store.close()

    def _load_images(self) -> None:
        """An image whose layers are gone is gone; the client pulls it again."""
        records = self.store.images()
        whole = [each for each in records if self.layers.keys() >= set(self.stack(each))]
        whole = [each for each in whole if self.configs.has(each.image.id)]
        self.store.delete_images({each.image.id for each in records} - {each.image.id for each in whole})
        self.catalog = Catalog(whole, self._pinned)

    def _load_rootfs(self) -> None:
        on_storage = self.driver.rootfs_ids()
        records = {each.container: each for each in self.store.rootfs()}
        self.rootfs = {key: each for key, each in records.items() if key in on_storage}
        self.store.delete_rootfs(records.keys() - on_storage)
        for container in on_storage - records.keys():
            self.driver.remove_rootfs(container)

    # -- images ------------------------------------------------------------------------------------------------

    def keys(self, layers: tuple[Layer, ...]) -> tuple[LayerKey, ...]:
        """The driver's keys of an image's layers, lowest first."""
        diff_ids = [layer.diff_id for layer in layers]
        return tuple(self.driver.layer_key(diff_ids[: number + 1]) for number in range(len(diff_ids)))

    def stack(self, record: ImageRecord) -> tuple[LayerKey, ...]:
        """The layers of which the image's root filesystems are made, lowest first."""
        return (*self.keys(record.layers), *((record.parents,) if record.parents else ()))

    async def add(self, images: Iterable[ImageRecord], layers: Iterable[LayerRecord] = ()) -> None:
        """Store new and changed records; all of them or none, also when the caller is cancelled."""
        await finish(self._add(tuple(images), tuple(layers)))

    async def _add(self, images: tuple[ImageRecord, ...], layers: tuple[LayerRecord, ...]) -> None:
        await asyncio.to_thread(self.store.put, images=images, layers=layers)
        self.layers.update((layer.key, layer) for layer in layers)
        for record in images:
            self.catalog.put(record)

    async def remove(self, image: ImageId) -> None:
        """Forget the image at once. Its layers go with the next sweep."""
        self.catalog.drop(image)
        await finish(asyncio.to_thread(self.store.delete_images, (image,)))

    async def settle(self) -> None:
        """Put layers on the disk, and note that they are there."""
        fresh = [layer.key for layer in self.layers.values() if layer.boot]
        if not fresh:
            return
        await asyncio.to_thread(self.driver.sync)
        async with self._gate:  # a sweep could take away what is noted here
            settled = [replace(self.layers[key], boot="") for key in fresh if key in self.layers]
            await self.add((), settled)

    # -- root filesystems --------------------------------------------------------------------------------------

    async def drop_rootfs(self, container: ContainerId) -> None:
        """Forget a root filesystem that is gone from the storage.

        A store that cannot be written does not keep a container from being removed: `load` drops such records, and
        until then the next call does.
        """
        self.rootfs.pop(container, None)
        self._dropped.add(container)
        dropped = set(self._dropped)
        try:
            await finish(asyncio.to_thread(self.store.delete_rootfs, dropped))
        except sqlite3.OperationalError as error:
            log.warning("root filesystem %s stays in the store for now: %s", container, error)
        else:
            self._dropped -= dropped

    # -- sweeping ----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def pulling(self) -> AsyncIterator[None]:
        """While it lasts nothing is swept."""
        async with self._gate:
            self._pulls += 1
        try:
            yield
        finally:
            self._pulls -= 1

    async def sweep(self) -> None:
        """Remove what nothing refers to, unless a pull is under way: its end sweeps."""
        async with self._gate:
            if self._pulls == 0:
                live = self._live_layers()
                await finish(asyncio.to_thread(self._sweep, live))
                self._keep(live)

    def _live_layers(self) -> set[LayerKey]:
        images = (key for each in self.catalog.records.values() for key in self.stack(each))
        return {*images, *(key for each in self.rootfs.values() for key in each.layers)}

    def _keep(self, live: set[LayerKey]) -> None:
        self.layers = {key: each for key, each in self.layers.items() if key in live}

    def _sweep(self, live: set[LayerKey]) -> None:
        dead = self.driver.layers() - live
        self.store.delete_layers(dead)
        for key in dead:
            self.driver.remove_layer(key)
        self.configs.sweep(set(self.catalog.records))
