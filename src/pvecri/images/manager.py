# SPDX-License-Identifier: Apache-2.0
"""The Image Manager: what the rest of pvecri asks about images and containers' root filesystems.

<images.root>/images.db      the store
              blobs/         configs
              tmp/           pulls under way
              <driver>/      layers and root filesystems, as the rootfs driver keeps them
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Final

from pvecri import metrics
from pvecri.concurrency import SharedTasks, finish
from pvecri.config import Config
from pvecri.errors import AlreadyExists, NotFound
from pvecri.images import reference as references
from pvecri.images.check import Finding, findings
from pvecri.images.check import repair as repaired
from pvecri.images.configs import Configs
from pvecri.images.drivers import make_driver
from pvecri.images.drivers.base import Owner
from pvecri.images.library import Library
from pvecri.images.pull.progress import Progress, StallTimeout, Transfer, time_limits
from pvecri.images.pull.puller import Puller
from pvecri.images.reference import Reference
from pvecri.images.registry.templates import TemplateStorage
from pvecri.images.store import RootfsRecord, Store
from pvecri.images.usage import Usage
from pvecri.model import ContainerId, FilesystemUsage, Image, ImageId, RegistryAuth, Value
from pvecri.supervision import Supervisor

log = logging.getLogger(__name__)

PARALLEL_PULLS: Final = 3


class StoreUsage(Value, frozen=True):
    """What images take, and what containers wrote."""

    images: FilesystemUsage
    containers: FilesystemUsage


class ImageManager:
    """Images and root filesystems below `config.images_root`. One object a root, in one event loop."""

    def __init__(self, config: Config, templates: TemplateStorage | None = None) -> None:
        """`templates` is where Proxmox pulls images to, when it is to."""
        self._templates = templates
        self._config = config.images
        self._root = config.images_root
        self._driver = make_driver(config.images, self._root)
        self._pulls = SharedTasks[ImageId]()
        self._transfers: set[Transfer] = set()
        self._transferred = Progress()
        self._slots = asyncio.Semaphore(PARALLEL_PULLS)
        self._supervisor = Supervisor()
        self._chores = asyncio.Lock()
        self._library: Library
        self._puller: Puller

    async def start(self) -> None:
        """Open the store and remove what a crash left half made. Root filesystems that are mounted stay so.

        Raises FailedPrecondition when the storage is not fit for the driver, OSError when it cannot be written.
        """
        self._library = await asyncio.to_thread(self._open)
        self._puller = Puller(self._config, self._library, self._root / "tmp", self._templates)
        self._tidy_soon()

    async def close(self) -> None:
        """End pulls and chores and close the store. Containers' root filesystems stay mounted."""
        await self._pulls.close()
        await self._puller.close()
        await self._supervisor.close()
        await asyncio.to_thread(self._library.close)

    async def idle(self) -> None:
        """Return when what has been removed is gone and what has been added is on the disk."""
        while self._supervisor.tasks:
            await asyncio.wait(self._supervisor.tasks)

    # -- images ------------------------------------------------------------------------------------------------

    async def pull(self, reference: str, auth: RegistryAuth | None = None) -> Image:
        """Fetch an image, or see that it is here already (CRI PullImage). Idempotent.

        Calls for one image with the same credentials share one download, which ends with the last of them. Raises
        InvalidArgument for what is no reference, NotFound, PermissionDenied or Unavailable with the registry's
        words, DeadlineExceeded after images.pull_timeout, and BadImage for content that is not what it should be.
        """
        parsed = references.parse(reference)
        image = await self._pulls.run((parsed, auth), lambda: self._pull(parsed, auth))
        return self.get(image)

    async def load(self, name: str, reference: str) -> Image:
        """Take in an image that lies somewhere else than in a registry, as `reference`.

        `name` is skopeo's for it, with the transport, such as `oci-archive:FILE`. Raises what `pull` raises.
        """
        parsed = references.parse(reference)
        async with self._slots:
            with self._transferring(Transfer()) as transfer:
                image = await self._puller.pull(name, parsed, None, transfer)
        self._tidy_soon()
        return self.get(image)

    @property
    def progress(self) -> Progress:
        """What pulls have done since the start, those under way included."""
        return sum((transfer.progress for transfer in self._transfers), self._transferred)

    async def check(self, *, repair: bool) -> AsyncIterator[tuple[Finding, bool]]:
        """What is wrong with the images, and whether it was repaired: by removing images that cannot be used.

        Reads everything there is.
        """
        found = await asyncio.to_thread(lambda: list(findings(self._library)))
        for each in found:
            yield each, repair and await repaired(self._library, each)
        if repair:
            self._tidy_soon()

    def list(self) -> tuple[Image, ...]:
        """All images."""
        return tuple(record.image for record in self._library.catalog.records.values())

    def find(self, reference: str) -> Image | None:
        """The image that `reference` means: an id or a unique beginning of one, a tag, a digest reference."""
        record = self._library.catalog.find(reference)
        return record.image if record else None

    def get(self, image: ImageId) -> Image:
        """The image with this id; NotFound when there is none."""
        record = self._library.catalog.records.get(image)
        if record is None:
            raise NotFound(f"image {image} is not in the store")
        return record.image

    def file_owners(self, image: ImageId) -> set[int]:
        """The owners and groups above 65535 of the image's files; NotFound without the image."""
        self.get(image)
        keys = self._library.keys(self._library.catalog.records[image].layers)
        records = (self._library.layers.get(key) for key in keys)
        return {each for record in records if record is not None for each in record.high_ids}

    def raw_config(self, image: ImageId) -> bytes:
        """The image's config file as it came; NotFound without the image."""
        return self._library.configs.read(self.get(image).id)

    async def remove(self, reference: str) -> None:
        """Remove the image that `reference` means, with all its names (CRI RemoveImage). Idempotent.

        Containers that were made of it keep running; layers go when nothing uses them any longer.
        """
        record = self._library.catalog.find(reference)
        if record is not None:
            await self._library.remove(record.image.id)
            await self._library.sweep()
            self._tidy_soon()

    async def usage(self) -> StoreUsage:
        """What the store takes (CRI ImageFsInfo): sums kept for images, a count of what containers wrote."""
        layers = self._library.layers.values()
        size = sum(layer.bytes for layer in layers)
        inodes = sum(layer.inodes for layer in layers) + len(self._library.catalog.records)
        written = await asyncio.to_thread(self._written, tuple(self._library.rootfs))
        return StoreUsage(images=self._usage(Usage(size, inodes)), containers=self._usage(written))

    # -- root filesystems --------------------------------------------------------------------------------------

    async def prepare_rootfs(
        self, container_id: str, image_id: ImageId, *, userns: Path | None, root_uid: int, root_gid: int
    ) -> Path:
        """Make and mount a container's root filesystem and return its path.

        With `userns`, the path of a user namespace such as /proc/PID/ns/user, the image's files belong to that
        namespace's ids; `root_uid` and `root_gid` are its root's ids outside. Nothing is left when it fails or is
        cancelled. Raises NotFound without the image, AlreadyExists when the container has a root filesystem, and
        FailedPrecondition when the storage cannot map ids.
        """
        container = ContainerId(container_id)
        record = self._library.catalog.records.get(image_id)
        if record is None:
            raise NotFound(f"image {image_id} is not in the store")
        if container in self._library.rootfs:
            raise AlreadyExists(f"container {container} has a root filesystem already")
        layers = self._library.stack(record)
        rootfs = RootfsRecord(container=container, image=image_id, layers=layers)
        owner = Owner(uid=root_uid, gid=root_gid)
        async with AsyncExitStack() as undo:
            undo.push_async_callback(self.remove_rootfs, container)
            path = await finish(self._make_rootfs(rootfs, owner, userns))
            undo.pop_all()
        return path

    async def mount_rootfs(self, container_id: str, userns: Path | None) -> Path:
        """Mount a root filesystem that was prepared before, as after the node's restart. Idempotent.

        Raises NotFound when the container has none.
        """
        record = self._library.rootfs.get(ContainerId(container_id))
        if record is None:
            raise NotFound(f"container {container_id} has no root filesystem")
        mount = asyncio.to_thread(self._driver.mount_rootfs, record.container, record.layers, userns)
        return await finish(mount)

    async def unmount_rootfs(self, container_id: str) -> None:
        """Unmount a root filesystem, in use or not; what was written stays. Idempotent."""
        await finish(asyncio.to_thread(self._driver.unmount_rootfs, ContainerId(container_id)))

    async def remove_rootfs(self, container_id: str) -> None:
        """Unmount a root filesystem and remove what was written. Idempotent."""
        container = ContainerId(container_id)
        await finish(asyncio.to_thread(self._driver.remove_rootfs, container))
        record = self._library.rootfs.get(container)
        if record is not None:
            await self._library.drop_rootfs(container)
            if record.image not in self._library.catalog.records:
                await self._library.sweep()
            self._tidy_soon()

    async def rootfs_usage(self, container_id: str) -> FilesystemUsage:
        """What the container wrote (CRI ContainerStats.writable_layer); 0 when it has no root filesystem."""
        return self._usage(await asyncio.to_thread(self._written, (ContainerId(container_id),)))

    def writable_layer(self, container_id: str) -> Path:
        """The directory of what a container wrote, with overlayfs' marks for what it removed.

        Raises Unimplemented where images.driver keeps a whole tree for each container.
        """
        return self._driver.writable_layer(ContainerId(container_id))

    def rootfs_ids(self) -> set[str]:
        """The containers that have a root filesystem."""
        return set(self._library.rootfs)

    # -- the parts ---------------------------------------------------------------------------------------------

    def _open(self) -> Library:
        scratch = self._root / "tmp"
        self._root.mkdir(mode=0o711, parents=True, exist_ok=True)
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(mode=0o700)
        self._driver.setup()
        configs = Configs(self._root / "blobs")
        configs.setup()
        library = Library(Store(self._root / "images.db"), self._driver, configs, self._config.pinned)
        library.load()
        return library

    async def _pull(self, reference: Reference, auth: RegistryAuth | None) -> ImageId:
        try:
            async with self._slots:
                stall = StallTimeout(self._config.pull_progress_timeout)
                begin = time.monotonic()
                with (
                    metrics.PULLS_RUNNING.track_inprogress(),
                    metrics.measured(metrics.PULLS, metrics.PULL_SECONDS),
                    self._transferring(Transfer(stall.reset, stall.suspended)) as transfer,
                ):
                    async with time_limits(reference, self._config, stall):
                        image = await self._puller.pull(f"docker://{reference}", reference, auth, transfer)
                _log_pull(reference, transfer.progress, time.monotonic() - begin)
                return image
        finally:
            self._tidy_soon()

    @contextmanager
    def _transferring(self, transfer: Transfer) -> Iterator[Transfer]:
        self._transfers.add(transfer)
        try:
            yield transfer
        finally:
            self._transfers.discard(transfer)
            self._transferred += transfer.progress

    async def _make_rootfs(self, record: RootfsRecord, owner: Owner, userns: Path | None) -> Path:
        self._library.rootfs[record.container] = record
        return await asyncio.to_thread(self._make_rootfs_blocking, record, owner, userns)

    def _make_rootfs_blocking(self, record: RootfsRecord, owner: Owner, userns: Path | None) -> Path:
        """All in one hop to a thread, for a container waits for it."""
        self._library.store.put_rootfs(record)
        self._driver.create_rootfs(record.container, record.layers, owner)
        return self._driver.mount_rootfs(record.container, record.layers, userns)

    def _written(self, containers: tuple[ContainerId, ...]) -> Usage:
        found = [self._driver.written(container) for container in containers]
        oldest = min((each.counted for each in found if each.counted), default=0)
        return Usage(sum(each.bytes for each in found), sum(each.inodes for each in found), oldest)

    def _usage(self, used: Usage) -> FilesystemUsage:
        return FilesystemUsage(
            mountpoint=str(self._driver.root),
            used_bytes=used.bytes,
            inodes_used=used.inodes,
            timestamp=used.counted or time.time_ns(),
        )

    async def _tidy(self) -> None:
        """The chores after something came or went; one at a time."""
        async with self._chores:
            await self._library.sweep()
            await self._library.settle()
            await asyncio.to_thread(self._driver.collect_garbage)
            if self._puller.templates is not None:
                await self._puller.templates.sweep()

    def _tidy_soon(self) -> None:
        # Once: the next pull or removal tidies again, and so does the next start.
        self._supervisor.once("image store", self._tidy)


def _log_pull(reference: Reference, progress: Progress, seconds: float) -> None:
    log.info(
        "pulled %s in %.1f s: %d layers with %d bytes, unpacked %d; %d layers were there already",
        *(reference, seconds, progress.layers, progress.fetched, progress.unpacked, progress.present),
    )
