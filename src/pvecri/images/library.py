# SPDX-License-Identifier: Apache-2.0
"""The images, layers and root filesystems of a node, in memory, in the store and on the storage.

Layers that no image and no root filesystem uses, and configs without an image, are removed by a sweep. It does not
run during a pull, which relies on layers that nothing else may use.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Final

from msgspec.structs import replace

from pvecri.concurrency import finish
from pvecri.errors import FailedPrecondition
from pvecri.images.catalog import Catalog
from pvecri.images.configs import Configs
from pvecri.images.drivers.base import LayerKey, RootfsDriver
from pvecri.images.image_mounts import ImageMounts
from pvecri.images.manifest import Layer
from pvecri.images.store import ImageRecord, LayerRecord, RootfsRecord, Store, StoreUnavailable
from pvecri.model import ContainerId, ImageId

log = logging.getLogger(__name__)

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class Library:
    """The library of a `store`, a `driver`, `configs` and `mounts`. For one event loop."""

    def __init__(
        self, store: Store, driver: RootfsDriver, configs: Configs, mounts: ImageMounts, pinned: Iterable[str]
    ) -> None:
        self.driver = driver
        self.configs = configs
        self.mounts = mounts
        self.boot = _BOOT_ID.read_text().strip()
        self.layers: dict[LayerKey, LayerRecord] = {}
        self.rootfs: dict[ContainerId, RootfsRecord] = {}
        self.store = store
        self._dropped: set[ContainerId] = set()
        self._gate = asyncio.Lock()
        self._pulls = 0
        self._pinned = tuple(pinned)
        self.catalog = Catalog((), self._pinned)

    def pin(self, pinned: Iterable[str]) -> None:
        """Replace the references of images that the kubelet must not collect."""
        self.catalog.pin(pinned)
        self._pinned = tuple(pinned)

    # -- opening ----------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Read the store; remove what only the store or only the storage has. Blocks."""
        on_storage = self.driver.layers()
        layers = {each.key: each for each in self.store.layers()}
        # A layer of another boot was never synced: a power cut may have left it with empty files (decision 0014).
        self.layers = {
            key: each for key, each in layers.items() if key in on_storage and each.boot in {"", self.boot}
        }
        self.store.delete_layers(layers.keys() - self.layers.keys())
        self._load_images()
        self._load_rootfs()
        live = self._live_layers()
        self._sweep(live)
        self._keep(live)

    def _load_images(self) -> None:
        records = self.store.images()
        # The kubelet pulls the others again.
        whole = [each for each in records if self.layers.keys() >= set(self.stack(each))]
        whole = [each for each in whole if self.configs.is_whole(each.image.id)]
        self.store.delete_images({each.image.id for each in records} - {each.image.id for each in whole})
        self.catalog = Catalog(whole, self._pinned)

    def _load_rootfs(self) -> None:
        on_storage = self.driver.rootfs_ids()
        records = {each.container: each for each in self.store.rootfs()}
        self.rootfs = {key: each for key, each in records.items() if key in on_storage}
        self.store.delete_rootfs(records.keys() - on_storage)
        mounted = {each.rootfs for each in self.mounts.all()}
        for container in on_storage - records.keys() - mounted:
            self.driver.remove_rootfs(container)

    # -- images ------------------------------------------------------------------------------------------------

    def keys(
        self, layers: tuple[Layer, ...], variants: Mapping[int, LayerKey] = MappingProxyType({})
    ) -> tuple[LayerKey, ...]:
        """The driver's keys of an image's layers, lowest first, with `variants` instead of those they replace."""
        diff_ids = [layer.diff_id for layer in layers]
        return tuple(
            variants.get(number) or self.driver.layer_key(diff_ids[: number + 1])
            for number in range(len(diff_ids))
        )

    def stack(self, record: ImageRecord) -> tuple[LayerKey, ...]:
        """The layers of the image's root filesystems, lowest first, with the parents layer."""
        return (*self.keys(record.layers, record.variants), *((record.parents,) if record.parents else ()))

    async def add(self, images: Iterable[ImageRecord], layers: Iterable[LayerRecord] = ()) -> None:
        """Insert or replace records in one transaction, which a cancellation does not interrupt."""
        await finish(self._add(tuple(images), tuple(layers)))

    async def _add(self, images: tuple[ImageRecord, ...], layers: tuple[LayerRecord, ...]) -> None:
        await asyncio.to_thread(self.store.put, images=images, layers=layers)
        self.layers.update((layer.key, layer) for layer in layers)
        for record in images:
            self.catalog.put(record)

    async def remove(self, image: ImageId) -> None:
        """Remove the image. Its layers are removed by the next sweep. FailedPrecondition while it is mounted."""
        where = ", ".join(each.target for each in await asyncio.to_thread(self.mounts.of, image) if each.target)
        # Again, without a file of each: no other process may mount the image before the catalog lacks it.
        if self.mounts.has(image):
            place = (
                f"is mounted at {where}; unmount it by `pvecri image umount`" if where else "is being converted"
            )
            raise FailedPrecondition(f"image {image} {place}")
        self.catalog.drop(image)  # first, so that no container starts from it
        await finish(asyncio.to_thread(self.store.delete_images, (image,)))

    async def sync(self) -> None:
        """Sync new layers to the disk, and record that they are trusted after the next boot, too."""
        fresh = [layer.key for layer in self.layers.values() if layer.boot]
        if not fresh:
            return
        # The layers were listed before: one that is added during syncfs(2) may not be covered by it.
        await asyncio.to_thread(self.driver.sync)
        async with self._gate:  # else a sweep could remove a layer between the check and its record
            synced = [replace(self.layers[key], boot="") for key in fresh if key in self.layers]
            await self.add((), synced)

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
        except StoreUnavailable as error:
            log.warning("root filesystem %s stays in the store for now: %s", container, error)
        else:
            self._dropped -= dropped

    # -- sweeping ----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def pulling(self) -> AsyncIterator[None]:
        """A context in which nothing is swept."""
        async with self._gate:
            self._pulls += 1
        try:
            yield
        finally:
            self._pulls -= 1

    async def sweep(self) -> None:
        """Remove unused layers and configs, unless a pull is running, for the end of each pull sweeps, too."""
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
        self.store.delete_layers(dead)  # records first: a layer without one is removed at the next start
        for key in dead:
            self.driver.remove_layer(key)
        self.configs.sweep(set(self.catalog.records))
