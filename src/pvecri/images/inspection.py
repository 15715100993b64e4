# SPDX-License-Identifier: Apache-2.0
"""What there is to know of an image beyond the CRI's fields, as JSON: the `info` of a verbose ImageStatus.

`imageSpec`, `chainID` and `labels` have the names that containerd and CRI-O give them.
"""

from __future__ import annotations

import json

from pvecri.images.drivers.base import LayerKey
from pvecri.images.library import Library
from pvecri.images.manifest import chain_id
from pvecri.images.store import ImageRecord


def inspection(library: Library, record: ImageRecord, driver: str) -> dict[str, object]:
    """The image's config or manifest, its layers and how they are stored, and who uses them. Blocks.

    `driver` is the rootfs driver's name. BadImage if the config is damaged.
    """
    return {
        **_document(library, record),
        "storage": {
            "driver": driver,
            "root": str(library.driver.root),
            "stack": library.stack(record),
            "layers": _layers(library, record),
        },
        "usedBy": {
            "containers": sorted(
                # A copy: the event loop adds and removes others meanwhile.
                each.container
                for each in tuple(library.rootfs.values())
                if each.image == record.image.id
            ),
            "mounts": [each.target for each in library.mounts.of(record.image.id) if each.target],
        },
    }


def _document(library: Library, record: ImageRecord) -> dict[str, object]:
    image = record.image
    document = json.loads(library.configs.read(image.id))
    if image.artifact_type:
        return {"artifactType": image.artifact_type, "manifest": document}
    return {
        "chainID": chain_id(image.diff_ids),
        "diffIDs": image.diff_ids,
        "labels": image.config.labels,
        "imageSpec": document,
    }


def _layers(library: Library, record: ImageRecord) -> list[dict[str, object]]:
    """The layers, lowest first: `size` is that of the compressed blob, `storedBytes` that on the disk."""
    keys = library.keys(record.layers, record.variants)
    layers = []
    for layer, key in zip(record.layers, keys, strict=True):
        named = {"file": layer.file} if layer.file else {"diffID": layer.diff_id}
        layers.append({"digest": layer.digest, **named, "size": layer.size, "key": key, **_stored(library, key)})
    return layers


def _stored(library: Library, key: LayerKey) -> dict[str, int]:
    stored = library.layers.get(key)
    return {"storedBytes": stored.bytes, "inodes": stored.inodes} if stored else {}
