# SPDX-License-Identifier: Apache-2.0
"""Images that Proxmox pulls (images.template_storage), as CT templates whose layers are read here (decision 0019).

A template is named by repository, tag and the digest of its manifest, so an existing one is the right image,
whoever pulled it: nodes that share the storage pull it once. Templates of this node are recorded in the store
before Proxmox is called; those that are no tag's image any longer are removed.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final, Protocol
from weakref import WeakValueDictionary

from pvecri.concurrency import finish
from pvecri.config.settings import ImagesConfig
from pvecri.errors import AlreadyExists, CommandError, Unavailable
from pvecri.images import reference as references
from pvecri.images.library import Library
from pvecri.images.reference import Reference
from pvecri.images.registry.oci_archive import OciArchive
from pvecri.images.registry.skopeo import applies, has_credentials, translate
from pvecri.images.store import TemplateRecord
from pvecri.model import RegistryAuth
from pvecri.supervision import attempt

log = logging.getLogger(__name__)

LAYERS_AT_ONCE: Final = 3
"""Of one pull; containerd's max_concurrent_downloads is 3 by default, too."""
_DIGEST_DIGITS: Final = 12
_MAX_PART: Final = 100
"""Characters of a repository or tag: the file name may have 255 bytes."""


class TemplateStorage(Protocol):
    """The templates of a Proxmox storage. Any call may raise Unavailable."""

    storage: str

    async def find(self, file: str) -> Path | None:
        """The path of a template on this node; None if there is none of that name."""
        ...

    async def pull(self, reference: str, file: str) -> None:
        """Have Proxmox pull an image. CommandError with skopeo's message, AlreadyExists if the file exists.

        The task in Proxmox may go on after a cancellation.
        """
        ...

    async def remove(self, file: str) -> None:
        """Stop the task that pulls a template, if it runs, and remove the template. Idempotent."""
        ...


class Templates:
    """The templates of one storage. For one event loop."""

    def __init__(self, storage: TemplateStorage, config: ImagesConfig, library: Library) -> None:
        self._storage = storage
        self._config = config
        self._library = library
        self._locks = WeakValueDictionary[str, asyncio.Lock]()

    def reason_against(self, reference: Reference, auth: RegistryAuth | None) -> str:
        """Why Proxmox cannot pull an image; empty if it can."""
        # oci-registry-pull takes NAME:TAG only, by a pattern without brackets, and no credentials
        # (PVE::API2::Storage::Status).
        if reference.digest:
            return "Proxmox cannot pull by digest"
        if (auth and applies(auth, reference)) or has_credentials(self._config.auth_file, reference):
            return "Proxmox cannot pull with credentials"
        if reference.registry.startswith("["):
            return "Proxmox cannot pull from an IPv6 address"
        return ""

    @asynccontextmanager
    async def archive(self, reference: Reference, manifest: str, config: str) -> AsyncIterator[OciArchive | None]:
        """The archive of an image's template, which is pulled if it does not exist and kept in the context.

        `manifest` is the digest of the registry's manifest for this platform, `config` that of its OCI
        config. None if Proxmox has pulled another image, because the tag has moved. Raises what a pull raises.
        """
        file = file_name(reference, manifest)
        record = TemplateRecord(
            file=file, storage=self._storage.storage, reference=str(reference), manifest=manifest
        )
        async with AsyncExitStack() as undo:
            await undo.enter_async_context(self._lock(file))
            path = await self._storage.find(file) or await self._pull(reference, record)
            archive = OciArchive(path, LAYERS_AT_ONCE)
            undo.push_async_callback(archive.close)
            await finish(asyncio.to_thread(archive.open))
            if await asyncio.to_thread(archive.config_digest) == config:
                yield archive
                return
            log.warning(
                "template %s is not the image that %s is now; fetching its layers from the registry",
                path,
                reference,
            )
            await self._remove_if_ours(file)
            yield None

    async def sweep(self) -> None:
        """Remove this node's templates that are no tag's image any longer and that no pull uses.

        If Proxmox fails to remove one, the next sweep tries it again.
        """
        for record in await asyncio.to_thread(self._library.store.templates):
            lock = self._lock(record.file)
            if record.storage != self._storage.storage or lock.locked():
                continue
            async with lock:
                if self._is_used(record):
                    continue
                remove = partial(self._remove_if_ours, record.file)
                await attempt(remove, "image store", f"template {record.file} could not be removed, will retry")

    async def _pull(self, reference: Reference, record: TemplateRecord) -> Path:
        store = self._library.store
        known = await self._is_ours(record.file)
        # Recorded first: if the daemon is killed from here on, the next sweep removes the template (decision
        # 0019).
        await asyncio.to_thread(store.put_template, record)
        try:
            await self._storage.pull(str(reference), record.file)
        except AlreadyExists:
            if not known:  # another node has pulled it meanwhile, and owns it
                await asyncio.to_thread(store.delete_template, record.file)
        except CommandError as failure:
            error = translate(reference, failure)
            hint = f"Proxmox pulls it to storage {record.storage}: images.template_storage"
            raise error if error is failure else type(error)(f"{error} ({hint})") from failure
        path = await self._storage.find(record.file)
        if path is None:
            raise Unavailable(f"pulling {reference}: template {record.file} was removed while Proxmox pulled it")
        return path

    async def _remove_if_ours(self, file: str) -> None:
        if await self._is_ours(file):
            await self._storage.remove(file)
            await asyncio.to_thread(self._library.store.delete_template, file)

    async def _is_ours(self, file: str) -> bool:
        return any(record.file == file for record in await asyncio.to_thread(self._library.store.templates))

    def _is_used(self, record: TemplateRecord) -> bool:
        image = self._library.catalog.with_reference(references.parse(record.reference))
        return image is not None and record.manifest in image.manifests

    def _lock(self, file: str) -> asyncio.Lock:
        return self._locks.setdefault(file, asyncio.Lock())


def file_name(reference: Reference, manifest: str) -> str:
    """A template's file name, such as `busybox_1.36_3fbc63216742.tar`."""
    name = reference.path.rpartition("/")[2][:_MAX_PART]
    tag = reference.tag[:_MAX_PART]
    return re.sub(
        r"[^\w.-]", "_", f"{name}_{tag}_{manifest.removeprefix('sha256:')[:_DIGEST_DIGITS]}.tar", flags=re.ASCII
    )
