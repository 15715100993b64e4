# SPDX-License-Identifier: Apache-2.0
"""The Image Manager: images and containers' root filesystems, for the rest of pvecri.

<images.root>/images.db      the store
              blobs/         configs
              mounts/        records of images that are mounted for people
              tmp/           temporary files of pulls
              <driver>/      the rootfs driver's layers and root filesystems
"""

from __future__ import annotations

import asyncio
import errno
import logging
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Final

from pvecri.concurrency import SharedTasks, finish
from pvecri.config.settings import Config, ConfigError, ImagesConfig
from pvecri.errors import AlreadyExists, InvalidArgument, NotFound
from pvecri.images import reference as references
from pvecri.images.check import Finding, findings
from pvecri.images.check import repair as repaired
from pvecri.images.configs import Configs
from pvecri.images.drivers import make_driver
from pvecri.images.drivers.base import Owner
from pvecri.images.image_mounts import ImageMounts
from pvecri.images.inspection import inspection
from pvecri.images.library import Library
from pvecri.images.pull.progress import Progress, StallTimeout, Transfer, time_limits
from pvecri.images.pull.puller import Puller
from pvecri.images.reference import Reference
from pvecri.images.registry.templates import TemplateStorage
from pvecri.images.store import RootfsRecord, Store
from pvecri.images.usage import Usage
from pvecri.model import ContainerId, FilesystemUsage, Image, ImageId, RegistryAuth, Value
from pvecri.observability import correlation, metrics
from pvecri.supervision import Supervisor

log = logging.getLogger(__name__)

PARALLEL_PULLS: Final = 3


class StoreUsage(Value, frozen=True):
    """The disk usage of images, and of containers' writable layers."""

    images: FilesystemUsage
    containers: FilesystemUsage


STORAGE_FAILS: Final = (errno.EIO, errno.EROFS, errno.EUCLEAN)
"""Errors after which nothing can be removed from a filesystem, and the kernel makes most of them read-only."""


TIDY_DELAY = 0.2
"""Seconds, so that the end of a pod or of many is tidied up once, and after the call that it would slow down."""


class ImageManager:
    """Images and root filesystems below `config.images_root`. One object for each root, in one event loop."""

    def __init__(self, config: Config, templates: TemplateStorage | None = None) -> None:
        """`templates` is the storage that Proxmox pulls images to, if images.template_storage is set."""
        self._templates = templates
        self._config = config.images
        self._root = config.images_root
        self._driver = make_driver(config.images, self._root)
        self._pulls = SharedTasks[ImageId]()
        self._transfers: set[Transfer] = set()
        self._transferred = Progress()
        self._slots = asyncio.Semaphore(PARALLEL_PULLS)
        self._supervisor = Supervisor()
        self._tidying = asyncio.Lock()
        self._tidy_due = False
        self._library: Library
        self._puller: Puller

    async def start(self) -> None:
        """Open the store and remove what a crash left half-made. Mounted root filesystems stay mounted.

        Raises FailedPrecondition if the storage does not support the driver, InternalError if a newer pvecri wrote
        the store, OSError if it cannot be written.
        """
        self._library = await asyncio.to_thread(self._open)
        self._puller = Puller(self._config, self._library, self._root / "tmp", self._templates)
        self._tidy_soon()

    async def close(self) -> None:
        """End pulls and background work and close the store. Root filesystems stay mounted."""
        # Pulls need the processes, and background work needs the store.
        await self._pulls.close()
        await self._puller.close()
        await self._supervisor.close()
        await asyncio.to_thread(self._library.store.close)

    def reconfigure(self, config: ImagesConfig) -> None:
        """Apply what of `config` can change meanwhile: insecure_registries and auth_file for new pulls, pinned."""
        try:
            self._library.pin(config.pinned)
        except InvalidArgument as error:
            raise ConfigError(f"images.pinned: {error}") from error
        self._puller.reconfigure(config)

    async def idle(self) -> None:
        """Return when the background work is done: what was removed is deleted, what was added is synced."""
        while self._supervisor.tasks:
            await asyncio.wait(self._supervisor.tasks)

    # -- images ------------------------------------------------------------------------------------------------

    async def pull(self, reference: str, auth: RegistryAuth | None = None) -> Image:
        """Fetch an image, if the store does not have it (CRI PullImage). Idempotent.

        Calls for one image with the same credentials share one pull, cancelled when the last of them is. Raises
        InvalidArgument if it is not a reference, NotFound, PermissionDenied or Unavailable with the registry's
        message, DeadlineExceeded after images.pull_timeout, and BadImage.
        """
        parsed = references.parse(reference)
        image = await self._pulls.run((parsed, auth), lambda: self._pull(parsed, auth))
        return self.get(image)

    async def load(self, name: str, reference: str) -> Image:
        """Add an image that is in no registry to the store as `reference`.

        `name` is skopeo's, with the transport, such as `oci-archive:FILE`. Raises what `pull` raises.
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

    @property
    def pulls_running(self) -> int:
        """How many pulls are under way."""
        return len(self._transfers)

    async def check(self, *, repair: bool) -> AsyncIterator[tuple[Finding, bool]]:
        """Damaged images, each with whether it was repaired: by removing it. Reads all layers."""
        found = await asyncio.to_thread(lambda: list(findings(self._library)))
        for each in found:
            yield each, repair and await repaired(self._library, each)
        if repair:
            self._tidy_soon()

    @property
    def mounts_root(self) -> Path:
        """The mount point below which containers' root filesystems are mounted."""
        return self._driver.root

    @property
    def generation(self) -> int:
        """Changes with every change of what `list` and `find` return."""
        return self._library.catalog.generation

    @property
    def count(self) -> int:
        """The number of images."""
        return len(self._library.catalog.records)

    def list(self) -> tuple[Image, ...]:
        return tuple(record.image for record in self._library.catalog.records.values())

    def find(self, reference: str) -> Image | None:
        """The image with this ID or unique prefix of an ID, tag, or digest reference."""
        record = self._library.catalog.find(reference)
        return record.image if record else None

    def get(self, image: ImageId) -> Image:
        """The image with this ID; NotFound if there is none."""
        record = self._library.catalog.records.get(image)
        if record is None:
            raise NotFound(f"image {image} is not in the store")
        return record.image

    def file_owners(self, image: ImageId) -> set[int]:
        """The files' owners and groups above 65535, for pods that map fewer IDs. NotFound without the image."""
        self.get(image)
        keys = self._library.stack(self._library.catalog.records[image])
        records = (self._library.layers.get(key) for key in keys)
        return {each for record in records if record is not None for each in record.high_ids}

    def raw_config(self, image: ImageId) -> bytes:
        """The image's config, byte by byte, or an artifact's manifest; NotFound without the image."""
        return self._library.configs.read(self.get(image).id)

    async def inspect(self, image: ImageId) -> dict[str, object]:
        """The image's config or manifest, its layers and users (images/inspection.py); NotFound."""
        record = self._library.catalog.records.get(self.get(image).id)
        assert record is not None, "get() has found it"
        return await asyncio.to_thread(inspection, self._library, record, self._config.driver)

    async def remove(self, reference: str) -> None:
        """Remove an image, given as to `find`, with all its names (CRI RemoveImage). Idempotent.

        FailedPrecondition while it is mounted by `pvecri image`. Its containers keep running; a layer is removed
        once neither an image nor a container uses it.

        """
        record = self._library.catalog.find(reference)
        if record is not None:
            await self._library.remove(record.image.id)
            await self._library.sweep()
            self._tidy_soon()

    async def usage(self) -> StoreUsage:
        """The disk usage of the store (CRI ImageFsInfo): recorded for images, counted for writable layers."""
        layers = self._library.layers.values()
        size = sum(layer.bytes for layer in layers)
        inodes = sum(layer.inodes for layer in layers) + len(self._library.catalog.records)  # a config each
        written = await asyncio.to_thread(self._written, tuple(self._library.rootfs))
        return StoreUsage(images=self._usage(Usage(size, inodes)), containers=self._usage(written))

    # -- root filesystems --------------------------------------------------------------------------------------

    async def prepare_rootfs(
        self, container_id: str, image_id: ImageId, *, userns: Path | None, root_uid: int, root_gid: int
    ) -> Path:
        """Make and mount a container's root filesystem and return its path.

        With `userns`, the path of a user namespace such as /proc/PID/ns/user, it is idmapped; `root_uid` and
        `root_gid` are the host IDs of that namespace's root. Leaves nothing if it fails or is cancelled. Raises
        NotFound without the image, AlreadyExists if the container has a root filesystem, and FailedPrecondition if
        the filesystem does not support idmapped mounts.
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

        def make() -> Path:
            # One hop to a thread for all of it: a container's start waits for this.
            # The record first: the next start removes a root filesystem that has none, and a record without one.
            self._library.store.put_rootfs(rootfs)
            self._driver.create_rootfs(container, layers, owner)
            return self._driver.mount_rootfs(container, layers, userns)

        async with AsyncExitStack() as undo:
            undo.push_async_callback(self.remove_rootfs, container)
            self._library.rootfs[container] = rootfs
            path = await finish(asyncio.to_thread(make))
            undo.pop_all()
        return path

    async def mount_rootfs(self, container_id: str, userns: Path | None) -> Path:
        """Mount a root filesystem again, as after the node's restart. Idempotent.

        Raises NotFound if the container has none.
        """
        record = self._library.rootfs.get(ContainerId(container_id))
        if record is None:
            raise NotFound(f"container {container_id} has no root filesystem")
        mount = asyncio.to_thread(self._driver.mount_rootfs, record.container, record.layers, userns)
        return await finish(mount)

    async def unmount_rootfs(self, container_id: str) -> None:
        """Unmount a root filesystem, in use or not; its writable layer stays. Idempotent."""
        await finish(asyncio.to_thread(self._driver.unmount_rootfs, ContainerId(container_id)))

    async def remove_rootfs(self, container_id: str) -> None:
        """Unmount a root filesystem and remove its writable layer. Idempotent.

        On a storage that fails or is read-only the writable layer stays until the daemon's next start: the
        container and its pod can be removed all the same.
        """
        container = ContainerId(container_id)
        try:
            await finish(asyncio.to_thread(self._driver.remove_rootfs, container))
        except OSError as error:
            if error.errno not in STORAGE_FAILS:
                raise
            await self.unmount_rootfs(container)
            log.warning("the root filesystem of %s stays on the storage for now: %s", container, error)
            return
        record = self._library.rootfs.get(container)
        if record is not None:
            await self._library.drop_rootfs(container)
            if record.image not in self._library.catalog.records:  # this may have been its layers' last user
                await self._library.sweep()
            self._tidy_soon()

    async def rootfs_usage(self, container_id: str) -> FilesystemUsage:
        """The usage of the writable layer (CRI ContainerStats.writable_layer); 0 if there is none."""
        return self._usage(await asyncio.to_thread(self._written, (ContainerId(container_id),)))

    def writable_layer(self, container_id: str) -> Path:
        """The directory of the files that a container changed, with overlayfs' whiteouts.

        Raises Unimplemented if images.driver keeps a whole tree for each container.
        """
        return self._driver.writable_layer(ContainerId(container_id))

    def rootfs_ids(self) -> set[str]:
        """The containers that have a root filesystem."""
        return set(self._library.rootfs)

    # -- internals ---------------------------------------------------------------------------------------------

    def _open(self) -> Library:
        scratch = self._root / "tmp"
        self._root.mkdir(mode=0o711, parents=True, exist_ok=True)  # containers' roots traverse it
        shutil.rmtree(scratch, ignore_errors=True)  # a crash may have left credentials there
        scratch.mkdir(mode=0o700)
        self._driver.setup()
        configs = Configs(self._root / "blobs")
        configs.setup()
        mounts = ImageMounts(self._root / "mounts", self._driver)
        mounts.setup()
        library = Library(Store(self._root / "images.db"), self._driver, configs, mounts, self._config.pinned)
        library.load()
        return library

    async def _pull(self, reference: Reference, auth: RegistryAuth | None) -> ImageId:
        try:
            async with self._slots:
                stall = StallTimeout(self._config.pull_progress_timeout)
                begin = time.monotonic()
                with (
                    correlation.span("pull of image", {"pvecri.image": str(reference)}),
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
        """The background work after images or root filesystems were added or removed; one at a time."""
        await asyncio.sleep(TIDY_DELAY)
        async with self._tidying:
            self._tidy_due = False  # what is removed from now on may be missed by this one
            await self._library.sweep()
            await self._library.sync()
            await asyncio.to_thread(self._driver.collect_garbage)
            if self._puller.templates is not None:
                await self._puller.templates.sweep()

    def _tidy_soon(self) -> None:
        """Tidy after TIDY_DELAY, once for all that ask until it begins."""
        if self._tidy_due:
            return
        self._tidy_due = True
        # Once: the next pull or removal tidies again, and so does the next start.
        self._supervisor.once("image store", self._tidy)


def _log_pull(reference: Reference, progress: Progress, seconds: float) -> None:
    log.info(
        "pulled %s in %.1f s: %d layers with %d bytes, unpacked %d; %d layers were present",
        *(reference, seconds, progress.layers, progress.fetched, progress.unpacked, progress.present),
    )
