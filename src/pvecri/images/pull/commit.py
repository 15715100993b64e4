# SPDX-License-Identifier: Apache-2.0
"""Last stage of a pull: layers on the storage, then the image in the library, each at once or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from pvecri.concurrency import finish
from pvecri.images import manifest as manifests
from pvecri.images.drivers.base import LayerKey
from pvecri.images.library import Library
from pvecri.images.manifest import BadImage
from pvecri.images.pull.fetch import Fetched
from pvecri.images.pull.plan import Plan
from pvecri.images.pull.resolve import Original, Resolved
from pvecri.images.store import ImageRecord, LayerRecord
from pvecri.model import Image, ImageId


async def add_name(library: Library, known: ImageRecord, image: Resolved) -> ImageId:
    """Give an image of the library the reference by which it was resolved, too.

    By tag it keeps the digest of the index it was first pulled with: the proxy resolves to the manifest only.
    """
    reference = image.reference
    seen = next((each for each in known.image.digests if each.startswith(f"{reference.name}@")), "")
    digest = reference.digest or seen.partition("@")[2] or image.digest
    await library.add(library.catalog.naming(known, reference, digest))
    return known.image.id


def commit_layers(library: Library, fetched: Sequence[Fetched]) -> list[LayerRecord]:
    """Make extracted directories layers; the records to add to the library. Blocks."""
    for each in fetched:
        library.driver.commit_layer(each.key, each.directory)
    return [_layer_record(library, each) for each in fetched]


async def commit_image(
    library: Library,
    plan: Plan,
    original: Original,
    layers: Sequence[LayerRecord],
    variants: Mapping[int, LayerKey],
) -> ImageId:
    """Add the image with the `layers` that were fetched for it, and `variants` instead of some (pull/variants.py).

    BadImage if config or conversion do not match.
    """
    content, document = plan.content, plan.document
    if plan.image.is_converted:
        # The image's ID is the digest of its own config, not of the one that the proxy made of it.
        document = await plan.image.config(original.manifest)
        own = manifests.parse_config(document, original.manifest)
        if own.layers != content.layers:
            raise BadImage(f"image {own.id}: its manifest and skopeo's conversion of it differ")
        content = own
    await asyncio.to_thread(library.configs.add, document)
    stack = library.keys(content.layers, variants)
    parents = await _parents_layer(library, stack, layers)
    image = Image(
        id=ImageId(content.id),
        size=content.size,
        diff_ids=tuple(layer.diff_id for layer in content.layers if not layer.file),
        config=content.config,
        artifact_type=content.artifact_type,
    )
    record = ImageRecord(
        image=image,
        layers=content.layers,
        parents=parents.key if parents else LayerKey(""),
        variants=dict(variants),
        manifests=tuple(dict.fromkeys((plan.image.digest, original.digest))),
    )
    named = library.catalog.naming(record, plan.image.reference, original.digest)
    await library.add(named, (*layers, *((parents,) if parents else ())))
    return image.id


async def _parents_layer(
    library: Library, stack: Sequence[LayerKey], fetched: Sequence[LayerRecord]
) -> LayerRecord | None:
    known = {**library.layers, **{record.key: record for record in fetched}}
    layers = [(key, frozenset(known[key].implicit)) for key in stack]
    key = await finish(asyncio.to_thread(library.driver.parents_layer, layers))
    if key is None:
        return None
    return LayerRecord(key=key, diff_id="", blobs=(), bytes=0, inodes=0, boot=library.boot)


def _layer_record(library: Library, fetched: Fetched) -> LayerRecord:
    known = library.layers.get(fetched.key)
    usage = library.driver.layer_usage(fetched.key) or fetched.unpacked
    return LayerRecord(
        key=fetched.key,
        diff_id="" if fetched.layer.file else fetched.layer.diff_id,
        blobs=(*(known.blobs if known else ()), fetched.layer.digest),  # one content, compressed differently
        bytes=usage.bytes,
        inodes=usage.inodes,
        implicit=fetched.unpacked.implicit,
        high_ids=fetched.unpacked.high_ids,
        boot=known.boot if known else library.boot,
    )
