# SPDX-License-Identifier: Apache-2.0
"""The stages of a pull, in order."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

from pvecri.concurrency import beside, finish
from pvecri.config.settings import ImagesConfig
from pvecri.images import manifest as manifests
from pvecri.images.library import Library
from pvecri.images.pull.commit import add_name, commit_image, commit_layers
from pvecri.images.pull.fetch import fetch
from pvecri.images.pull.plan import plan
from pvecri.images.pull.progress import Transfer
from pvecri.images.pull.resolve import find_original, policy_is_applied, resolve
from pvecri.images.pull.variants import fetch_variants
from pvecri.images.reference import Reference
from pvecri.images.registry.processes import Workers
from pvecri.images.registry.skopeo import Skopeo, translated
from pvecri.images.registry.templates import Templates, TemplateStorage
from pvecri.images.store import LayerRecord
from pvecri.model import ImageId, RegistryAuth


class Puller:
    """Pulls into `library`; `scratch` is a directory for temporary files.

    With `storage` Proxmox pulls what it can, and layers are read from its templates.
    """

    def __init__(
        self, config: ImagesConfig, library: Library, scratch: Path, storage: TemplateStorage | None = None
    ) -> None:
        self._config = config
        self._library = library
        self._skopeo = Skopeo(config, scratch)
        self._workers = Workers(self._skopeo)
        self.templates = Templates(storage, config, library) if storage else None

    def reconfigure(self, config: ImagesConfig) -> None:
        """Use `insecure_registries` and `auth_file` of `config` for later pulls."""
        self._skopeo.reconfigure(config)

    async def close(self) -> None:
        """End the idle processes. Idempotent; no pull may be running."""
        await self._workers.close()

    async def pull(
        self, name: str, reference: Reference, auth: RegistryAuth | None, transfer: Transfer
    ) -> ImageId:
        """Add the image that skopeo finds under `name`, with its transport, to the library as `reference`.

        An image that is present costs one request to the registry, by digest none. Raises what Skopeo and a pull
        of Proxmox raise, and BadImage; nothing that was fetched is in the library then.
        """
        library, catalog = self._library, self._library.catalog
        if reference.digest and name.startswith("docker://") and (known := catalog.with_reference(reference)):
            return known.image.id
        with translated(reference):
            async with library.pulling(), AsyncExitStack() as stack:
                image = await stack.enter_async_context(resolve(self._workers, name, reference, auth))
                if known := catalog.with_manifest(image.digest):
                    return await add_name(library, known, image)
                # By requests of its own, so beside the layers.
                original = await stack.enter_async_context(beside(find_original(self._skopeo, image)))
                if not policy_is_applied(self._skopeo, image):
                    place, manifest = reference.at((await original).digest), manifests.parse_manifest(image.data)
                    await self._skopeo.require_policy(place, auth, manifest)
                planned = await stack.enter_async_context(plan(library, self.templates, image, transfer))
                layers: list[LayerRecord] = []
                for batch in planned.batches:
                    # For each batch: another pull's layer may have ended it, and a new one takes its place.
                    unpacker = await self._workers.unpacker()
                    async with fetch(planned, batch, library.driver, unpacker, self._config) as fetched:
                        layers += await finish(asyncio.to_thread(commit_layers, library, fetched))
                variants = await fetch_variants(library, planned, layers, self._workers, self._config, transfer)
                layers += variants.fetched
                return await commit_image(library, planned, await original, layers, variants.keys)
