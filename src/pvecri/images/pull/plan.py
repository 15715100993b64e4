# SPDX-License-Identifier: Apache-2.0
"""Second stage of a pull: which layers are missing, and where each comes from."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from pvecri.images import manifest as manifests
from pvecri.images.artifacts import parse_artifact
from pvecri.images.drivers.base import LayerKey
from pvecri.images.library import Library
from pvecri.images.manifest import BadImage, Content, Layer, Manifest
from pvecri.images.pull.progress import LayerTransfer, Transfer
from pvecri.images.pull.resolve import Resolved
from pvecri.images.registry.oci_archive import OciArchive
from pvecri.images.registry.templates import Templates

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MissingLayer:
    """A layer to fetch, on top of `parent`; with `links` of the layers below, see Job."""

    key: LayerKey
    parent: LayerKey | None
    layer: Layer
    transfer: LayerTransfer
    links: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What is to be fetched of `image`, whose config, `content`, is checked against its manifest.

    `document` is the config's bytes; of an artifact, those of the manifest. The layers of a batch are independent
    of each other, those of the next may build on it. With `archive`, the image as Proxmox has pulled it, layers
    come from there.
    """

    image: Resolved
    document: bytes
    content: Content
    archive: OciArchive | None
    batches: tuple[tuple[MissingLayer, ...], ...]

    def archive_with(self, layer: Layer) -> OciArchive | None:
        return self.archive if self.archive is not None and layer.digest in self.archive else None


@asynccontextmanager
async def plan(
    library: Library, templates: Templates | None, image: Resolved, transfer: Transfer
) -> AsyncIterator[Plan]:
    """Read manifest and config, have Proxmox pull its template if it is to, and compare with the library.

    Raises BadImage, and what a pull of Proxmox raises. The template is not removed while the context lasts.
    """
    manifest = manifests.parse_manifest(image.data)
    document, content = await _read(image, manifest)
    async with AsyncExitStack() as stack:
        archive = None
        if templates is not None and image.is_remote and not manifest.is_artifact:
            if reason := templates.reason_against(image.reference, image.auth):
                log.info("pulling %s directly, not as a template: %s", image.reference, reason)
            else:
                template = templates.archive(image.reference, image.digest, manifest.config.digest)
                with transfer.stall_suspended():  # Proxmox reports no progress
                    archive = await stack.enter_async_context(template)
        missing = _missing(library, content)
        transfers = transfer.plan(tuple(missing.values()), content.layers)
        keys = library.keys(content.layers)
        parents = dict(zip(keys, (None, *keys), strict=False))
        layers = tuple(
            MissingLayer(key, parents[key], layer, each)
            for (key, layer), each in zip(missing.items(), transfers, strict=True)
        )
        batches = tuple((layer,) for layer in layers) if library.driver.stacked else (layers,)
        yield Plan(image, document, content, archive, batches if layers else ())


async def _read(image: Resolved, manifest: Manifest) -> tuple[bytes, Content]:
    """The document whose digest is the image's ID, and what it describes."""
    if manifest.is_artifact:
        if image.is_converted:
            raise BadImage(f"neither an image nor an OCI artifact: its config is a {manifest.config.media_type!r}")
        return image.data, parse_artifact(image.data, manifest)
    config = await (image.converted_config() if image.is_converted else image.config(manifest))
    return config, manifests.parse_config(config, manifest)


def _missing(library: Library, content: Content) -> dict[LayerKey, Layer]:
    """By key, so that a layer which the image has twice is fetched once.

    A layer of this diff ID counts as present only if it came from a blob of this digest: otherwise an image that
    merely claims the diff ID of a private image's layer would get its content.
    """
    missing = {}
    for key, layer in zip(library.keys(content.layers), content.layers, strict=True):
        record = library.layers.get(key)
        if record is None or layer.digest not in record.blobs:
            for other in library.layers.values():
                of_an_image = other.diff_id and not layer.file
                if layer.digest in other.blobs and of_an_image and other.diff_id != layer.diff_id:
                    raise manifests.wrong_diff_id(layer, other.diff_id)
            missing[key] = layer
    return missing
