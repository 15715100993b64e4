# SPDX-License-Identifier: Apache-2.0
"""How an image comes into the library: resolve the tag, fetch what is missing, unpack, name.

Names are resolved to a digest first and everything else is fetched by that digest, so that a tag that moves
meanwhile cannot mix two images. All checks of content happen here: skopeo verifies what it fetches against the
manifest, we verify what comes out of a layer against the config.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from pathlib import Path
from tempfile import mkdtemp

from pvecri.cancellation import finish
from pvecri.config import ImagesConfig
from pvecri.images import manifest as manifests
from pvecri.images.drivers.base import LayerKey
from pvecri.images.library import Library
from pvecri.images.manifest import BadImage, Content, Layer
from pvecri.images.reference import Reference
from pvecri.images.skopeo import Skopeo
from pvecri.images.store import ImageRecord, LayerRecord
from pvecri.images.tasks import beside
from pvecri.images.unpacker import Job, Unpacked, Unpacker, unpacker
from pvecri.model import Image, ImageId, RegistryAuth


class Puller:
    """Pulls into `library`; `scratch` is a directory for what lasts no longer than a pull."""

    def __init__(self, config: ImagesConfig, library: Library, scratch: Path) -> None:
        self._config = config
        self._library = library
        self._scratch = scratch
        self._skopeo = Skopeo(config, scratch)

    async def pull(self, reference: Reference, auth: RegistryAuth | None) -> ImageId:
        """The image that the registry has under `reference`, now in the library.

        Costs one look at the registry when it is there already, none when it is there under this very digest.
        Raises what Skopeo raises, and BadImage; nothing that was fetched is in the library then.
        """
        catalog = self._library.catalog
        if reference.digest and (known := catalog.with_reference(reference)):
            return known.image.id
        async with self._library.pulling():
            top = await self._skopeo.manifest(reference, auth)
            digest = manifests.digest_of(top)
            if reference.digest not in {"", digest}:
                raise BadImage(f"{reference} has the digest {digest}")
            known = catalog.with_content(digest)
            converted = manifests.is_converted(top)
            record, layers = (known, ()) if known else await self._fetch(reference.at(digest), auth, converted)
            await self._library.add(catalog.naming(record, reference, digest), layers)
            return record.image.id

    async def _fetch(
        self, reference: Reference, auth: RegistryAuth | None, converted: bool
    ) -> tuple[ImageRecord, Sequence[LayerRecord]]:
        """All that is under a digest. A `converted` image's own config, whose digest is its id, comes apart."""
        async with AsyncExitStack() as stack:
            helper = await stack.enter_async_context(unpacker())
            layout = await stack.enter_async_context(self._layout())
            own_config = beside(self._skopeo.config(reference, auth)) if converted else nullcontext(None)
            config = await stack.enter_async_context(own_config)
            await self._skopeo.copy(reference, auth, layout, self._library.blobs.root)
            content = await asyncio.to_thread(self._read, layout, await config if config else None)
            layers = await self._unpack(helper, content)
            parents = await self._parents(content, layers)
        image = Image(
            id=ImageId(content.config_digest),
            size=content.size,
            diff_ids=tuple(layer.diff_id for layer in content.layers),
            config=content.config,
        )
        key = parents.key if parents else LayerKey("")
        return ImageRecord(image=image, layers=content.layers, parents=key), (
            *layers,
            *((parents,) if parents else ()),
        )

    @asynccontextmanager
    async def _layout(self) -> AsyncIterator[Path]:
        """A place for skopeo's OCI layout and its half-fetched blobs."""
        directory = Path(mkdtemp(dir=self._scratch, prefix="pull-"))
        try:
            yield directory / "layout"
        finally:
            await finish(asyncio.to_thread(_remove_tree, directory))

    def _read(self, layout: Path, own_config: bytes | None) -> Content:
        """What the manifest and the config say. Blocks."""
        blobs = self._library.blobs
        descriptor = manifests.parse_layout((layout / "index.json").read_bytes())
        data = manifests.verified(blobs.document(descriptor.digest), descriptor, "manifest")
        manifest = manifests.parse_manifest(data)
        config = manifests.verified(blobs.document(manifest.config.digest), manifest.config, "config")
        if own_config is not None:
            blobs.add(own_config)
        return manifests.parse_config(own_config or config, manifest)

    # -- layers ------------------------------------------------------------------------------------------------

    async def _unpack(self, helper: Unpacker, content: Content) -> list[LayerRecord]:
        """Commit the layers that were not there, or not known to be in these blobs; their records."""
        keys = self._library.keys(content.layers)
        parents = dict(zip(keys, (None, *keys), strict=False))
        missing = {
            key: layer for key, layer in zip(keys, content.layers, strict=True) if not self._is_known(key, layer)
        }
        batches = [{key: layer} for key, layer in missing.items()] if self._library.driver.stacked else [missing]
        records = []
        for batch in batches:
            if batch:
                records += await self._unpack_batch(helper, batch, parents)
        return records

    async def _parents(self, content: Content, fresh: Sequence[LayerRecord]) -> LayerRecord | None:
        """The record of the image's parents layer, made when it needs one."""
        known = {**self._library.layers, **{record.key: record for record in fresh}}
        layers = [(key, frozenset(known[key].implicit)) for key in self._library.keys(content.layers)]
        key = await finish(asyncio.to_thread(self._library.driver.parents_layer, layers))
        if key is None:
            return None
        return LayerRecord(key=key, diff_id="", blobs=(), bytes=0, inodes=0, boot=self._library.boot)

    def _is_known(self, key: LayerKey, layer: Layer) -> bool:
        """A layer is there for those who name a blob that is known to hold it, and for nobody else.

        Otherwise an image that merely claims a layer's diff id would get at its content.
        """
        record = self._library.layers.get(key)
        if record is not None and layer.digest in record.blobs:
            return True
        for other in self._library.layers.values():
            if layer.digest in other.blobs and other.diff_id != layer.diff_id:
                raise _wrong_content(layer, other.diff_id)
        return False

    async def _unpack_batch(
        self, helper: Unpacker, layers: dict[LayerKey, Layer], parents: dict[LayerKey, LayerKey | None]
    ) -> list[LayerRecord]:
        driver = self._library.driver
        async with AsyncExitStack() as undo:
            directories = []
            for key in layers:
                directories.append(driver.begin_layer(key, parents[key]))
                undo.callback(driver.abort_layer, directories[-1])
            jobs = map(self._job, layers.values(), directories)
            results = await helper.run(list(jobs))
            for layer, result in zip(layers.values(), results, strict=True):
                if result.diff_id != layer.diff_id:
                    raise _wrong_content(layer, result.diff_id)
            await finish(asyncio.to_thread(self._commit, dict(zip(layers, directories, strict=True))))
            return [self._record(key, layers[key], result) for key, result in zip(layers, results, strict=True)]

    def _job(self, layer: Layer, directory: Path) -> Job:
        return Job(
            blob=str(self._library.blobs.path(layer.digest)),
            directory=str(directory),
            max_size=self._config.max_layer_size,
            max_entries=self._config.max_layer_entries,
            stacked=self._library.driver.stacked,
        )

    def _commit(self, directories: dict[LayerKey, Path]) -> None:
        for key, directory in directories.items():
            self._library.driver.commit_layer(key, directory)

    def _record(self, key: LayerKey, layer: Layer, result: Unpacked) -> LayerRecord:
        known = self._library.layers.get(key)
        usage = self._library.driver.layer_usage(key)
        return LayerRecord(
            key=key,
            diff_id=layer.diff_id,
            blobs=(*(known.blobs if known else ()), layer.digest),
            bytes=usage.bytes if usage else result.bytes,
            inodes=usage.inodes if usage else result.inodes,
            implicit=result.implicit,
            boot=known.boot if known else self._library.boot,
        )


def _wrong_content(layer: Layer, found: str) -> BadImage:
    return BadImage(f"layer {layer.digest} has the content {found} where the config says {layer.diff_id}")


def _remove_tree(directory: Path) -> None:
    """A pull's own directory: a few plain files."""
    for path in sorted(directory.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    directory.rmdir()
