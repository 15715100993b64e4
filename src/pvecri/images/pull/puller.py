# SPDX-License-Identifier: Apache-2.0
"""How an image comes into the library: ask what the name means, fetch what is missing, unpack, name.

skopeo's proxy resolves the name and the platform, and everything is fetched of the image that it has opened then,
so a tag that moves meanwhile cannot mix two images. What the proxy converts, Docker's manifests, is asked for as
the registry has it while the layers come in: the image's id is the digest of its own config.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from pvecri.concurrency import all_of, beside, finish
from pvecri.config import ImagesConfig
from pvecri.errors import CommandError
from pvecri.images import manifest as manifests
from pvecri.images.drivers.base import LayerKey
from pvecri.images.library import Library
from pvecri.images.manifest import BadImage, Content, Layer, Manifest
from pvecri.images.pull.progress import LayerTransfer, Transfer
from pvecri.images.reference import Reference
from pvecri.images.registry.oci_archive import OciArchive
from pvecri.images.registry.processes import Workers
from pvecri.images.registry.proxy import ImageProxy, Pipe
from pvecri.images.registry.skopeo import Skopeo, translated
from pvecri.images.registry.templates import LAYERS_AT_ONCE, Templates, TemplateStorage
from pvecri.images.store import ImageRecord, LayerRecord
from pvecri.images.unpacking.client import Job, Unpacked, Unpacker
from pvecri.model import Image, ImageId, RegistryAuth

log = logging.getLogger(__name__)

_POLICY_IN_PROXY: Final = (0, 2, 6)
"""The version of the proxy's protocol from which on OpenImage applies the signature policy."""


@dataclass(frozen=True)
class _Source:
    """An image that a proxy has opened: its number, its manifest for this platform, and that one's own digest."""

    proxy: ImageProxy
    number: int
    name: str
    reference: Reference
    auth: RegistryAuth | None
    digest: str
    data: bytes
    archive: OciArchive | None = None
    """Where layers are to be had from nearer by."""

    @property
    def is_remote(self) -> bool:
        return self.name.startswith("docker://")

    @property
    def is_converted(self) -> bool:
        return manifests.digest_of(self.data) != self.digest

    async def config(self, manifest: Manifest) -> bytes:
        """The config that the manifest names, byte by byte."""
        named = manifest.config
        return manifests.verified(
            await self.proxy.document(self.number, named.digest, named.size), named, "config"
        )

    def near(self, layer: Layer) -> OciArchive | None:
        """The archive, if the layer is in it."""
        return self.archive if self.archive is not None and layer.digest in self.archive else None

    async def blob(self, layer: Layer) -> Pipe:
        """Begin to fetch a layer; what is read must be `finish`ed. Its digest holds, wherever it comes from."""
        if archive := self.near(layer):
            return await archive.blob(layer.digest)
        return await self.proxy.blob(self.number, layer.digest, layer.size)

    async def finish(self, layer: Layer, pipe: Pipe) -> None:
        """Wait until a layer has been read. CommandError or BadImage when it was not what was promised."""
        await (self.near(layer) or self.proxy).finish(pipe)


@dataclass(frozen=True)
class _Original:
    """What the registry itself has under a name: its digest, and the manifest for this platform."""

    digest: str
    manifest: Manifest


class Puller:
    """Pulls into `library`; `scratch` is a directory for what lasts no longer than a pull.

    With `storage` Proxmox pulls what it can, and layers are taken from there.
    """

    def __init__(
        self, config: ImagesConfig, library: Library, scratch: Path, storage: TemplateStorage | None = None
    ) -> None:
        self._config = config
        self._library = library
        self._skopeo = Skopeo(config, scratch)
        self._workers = Workers(self._skopeo)
        self.templates = Templates(storage, config, library) if storage else None

    async def close(self) -> None:
        """End the processes that wait for the next pull."""
        await self._workers.close()

    async def pull(self, reference: Reference, auth: RegistryAuth | None, transfer: Transfer) -> ImageId:
        """The image that the registry has under `reference`, now in the library.

        Costs one look at the registry when it is there already, none when it is there under this very digest.
        Raises what Skopeo raises, and BadImage; nothing that was fetched is in the library then.
        """
        catalog = self._library.catalog
        if reference.digest and (known := catalog.with_reference(reference)):
            return known.image.id
        return await self._bring(f"docker://{reference}", reference, auth, transfer)

    async def load(self, name: str, reference: Reference, transfer: Transfer) -> ImageId:
        """The image that skopeo finds under `name`, with its transport, now in the library as `reference`."""
        return await self._bring(name, reference, None, transfer)

    async def _bring(
        self, name: str, reference: Reference, auth: RegistryAuth | None, transfer: Transfer
    ) -> ImageId:
        async with self._library.pulling(), AsyncExitStack() as stack:
            with translated(reference):
                opened = self._workers.opened(name, reference, auth)
                proxy, number = await stack.enter_async_context(opened)
                digest, data = await proxy.manifest(number)
                known = self._library.catalog.with_manifest(digest)
                source = _Source(proxy, number, name, reference, auth, digest, data)
                record = await (self._named(source, known) if known else self._fetch(source, transfer))
                await proxy.close_image(number)
            return record.image.id

    async def _named(self, source: _Source, known: ImageRecord) -> ImageRecord:
        """Give an image that is there the name; an index that it has been seen with before stays its digest."""
        reference = source.reference
        seen = next((each for each in known.image.digests if each.startswith(f"{reference.name}@")), "")
        digest = reference.digest or seen.partition("@")[2] or source.digest
        await self._library.add(self._library.catalog.naming(known, reference, digest))
        return known

    async def _fetch(self, source: _Source, transfer: Transfer) -> ImageRecord:
        async with AsyncExitStack() as held:
            return await self._fetch_holding(source, transfer, held)

    async def _fetch_holding(self, source: _Source, transfer: Transfer, held: AsyncExitStack) -> ImageRecord:
        """`held` keeps the image's template, if it has one, until the image is known to need it."""
        async with beside(self._original(source)) as asking:
            manifest = manifests.parse_manifest(source.data)
            if source.is_remote and not self._policy_applied(source.proxy):
                place = source.reference.at((await asking).digest)
                await self._skopeo.require_policy(place, source.auth, manifest)
            config = await (source.proxy.config(source.number) if source.is_converted else source.config(manifest))
            content = manifests.parse_config(config, manifest)
            with transfer.elsewhere():
                archive = await self._template(source, manifest, held)
            layers = await self._unpack(replace(source, archive=archive), content, transfer)
            original = await asking
        if source.is_converted:
            config = await source.config(original.manifest)
            content = _agreeing(manifests.parse_config(config, original.manifest), content)
        await asyncio.to_thread(self._library.configs.add, config)
        parents = await self._parents(content, layers)
        record = _record(content, parents, (source.digest, original.digest))
        named = self._library.catalog.naming(record, source.reference, original.digest)
        await self._library.add(named, (*layers, *((parents,) if parents else ())))
        return record

    async def _template(self, source: _Source, manifest: Manifest, held: AsyncExitStack) -> OciArchive | None:
        """The image as Proxmox has it; None when it is to come from the registry."""
        if self.templates is None or not source.is_remote:
            return None
        if why := self.templates.reason_against(source.reference, source.auth):
            log.info("pulling %s directly, not as a template: %s", source.reference, why)
            return None
        archive = self.templates.archive(source.reference, source.digest, manifest.config.digest)
        return await held.enter_async_context(archive)

    def _policy_applied(self, proxy: ImageProxy) -> bool:
        """Whether opening the image was all that the signature policy asks for."""
        return proxy.version >= _POLICY_IN_PROXY or self._skopeo.accepts_everything

    async def _original(self, source: _Source) -> _Original:
        """As the registry has it. When the tag has moved since, the image's own digest is what names it."""
        reference, digest, data = source.reference, source.reference.digest, source.data
        if not source.is_remote:
            data = await self._skopeo.manifest_of(source.name) if source.is_converted else data
            return _Original(source.digest, manifests.parse_manifest(data))
        if not digest:
            top = await self._skopeo.manifest(reference, source.auth)
            digest = manifests.digest_of(top)
            if digest == source.digest:
                data = top
            elif source.digest.encode() not in top:
                digest = source.digest
        if manifests.digest_of(data) != source.digest:
            data = await self._skopeo.manifest(reference.at(source.digest), source.auth)
        return _Original(digest, manifests.parse_manifest(data))

    # -- layers ------------------------------------------------------------------------------------------------

    async def _unpack(self, source: _Source, content: Content, transfer: Transfer) -> list[LayerRecord]:
        """Commit the layers that were not there, or not known to be in these blobs; their records."""
        keys = self._library.keys(content.layers)
        parents = dict(zip(keys, (None, *keys), strict=False))
        missing = {
            key: layer for key, layer in zip(keys, content.layers, strict=True) if not self._is_known(key, layer)
        }
        told = transfer.plan(tuple(missing.values()), len(content.layers) - len(missing))
        told_of = dict(zip(missing, told, strict=True))
        batches = [{key: layer} for key, layer in missing.items()] if self._library.driver.stacked else [missing]
        records = []
        for batch in batches:
            if batch:
                records += await self._unpack_batch(source, batch, parents, told_of)
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
        self,
        source: _Source,
        layers: dict[LayerKey, Layer],
        parents: dict[LayerKey, LayerKey | None],
        told: dict[LayerKey, LayerTransfer],
    ) -> list[LayerRecord]:
        driver = self._library.driver
        helper = await self._workers.unpacker()
        slots = asyncio.Semaphore(LAYERS_AT_ONCE)
        async with AsyncExitStack() as undo:
            directories = {}
            for key in layers:
                directories[key] = await finish(asyncio.to_thread(driver.begin_layer, key, parents[key]))
                undo.callback(driver.abort_layer, directories[key])

            async def fetch(key: LayerKey, layer: Layer) -> Unpacked:
                async with slots:
                    return await self._fetch_layer(source, helper, layer, directories[key], told[key])

            results = await all_of(fetch(key, layer) for key, layer in layers.items())
            await finish(asyncio.to_thread(self._commit, directories))
            return [self._record(key, layers[key], result) for key, result in zip(layers, results, strict=True)]

    async def _fetch_layer(
        self, source: _Source, helper: Unpacker, layer: Layer, directory: Path, told: LayerTransfer
    ) -> Unpacked:
        """Unpack a layer while it comes in; what comes out must be what the config says."""
        pipe = await source.blob(layer)
        unpacking = helper.run(self._job(layer, directory), pipe.fd, told.reached)
        async with beside(unpacking) as result:
            try:
                await source.finish(layer, pipe)
            except CommandError:
                await result  # when it gave up reading, its reason is the one to tell
                raise
            unpacked = await result
        if unpacked.diff_id != layer.diff_id:
            raise _wrong_content(layer, unpacked.diff_id)
        told.done("template" if source.near(layer) else "registry")
        return unpacked

    def _job(self, layer: Layer, directory: Path) -> Job:
        return Job(
            layer=layer.digest,
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
            high_ids=result.high_ids,
            boot=known.boot if known else self._library.boot,
        )


def _record(content: Content, parents: LayerRecord | None, digests: Sequence[str]) -> ImageRecord:
    image = Image(
        id=ImageId(content.config_digest),
        size=content.size,
        diff_ids=tuple(layer.diff_id for layer in content.layers),
        config=content.config,
    )
    key = parents.key if parents else LayerKey("")
    return ImageRecord(image=image, layers=content.layers, parents=key, manifests=tuple(dict.fromkeys(digests)))


def _agreeing(content: Content, converted: Content) -> Content:
    """The image's own content, when the converted one that was fetched has the same layers."""
    if content.layers != converted.layers:
        raise BadImage(f"image {content.config_digest}: its manifest and skopeo's conversion of it do not agree")
    return content


def _wrong_content(layer: Layer, found: str) -> BadImage:
    return BadImage(f"layer {layer.digest} has the content {found} where the config says {layer.diff_id}")
