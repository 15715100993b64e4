# SPDX-License-Identifier: Apache-2.0
"""Whether the images in a library are whole, and what to do about those that are not."""

from __future__ import annotations

from collections.abc import Iterator

from pvecri.images.drivers.base import LayerKey
from pvecri.images.library import Library
from pvecri.images.manifest import BadImage
from pvecri.model import ContainerId, ImageId, Value


class Finding(Value, frozen=True):
    """Something that is not as it should be: a layer, or else the config of the one image that is named.

    `images` have the layer, `containers` root filesystems on top of it.
    """

    problem: str
    layer: LayerKey = LayerKey("")
    images: tuple[ImageId, ...] = ()
    containers: tuple[ContainerId, ...] = ()


def findings(library: Library) -> Iterator[Finding]:
    """Look at all configs and layers, one after the other; reads everything, so it takes long. Blocks."""
    for image in library.catalog.records:
        try:
            library.configs.read(image)
        except (BadImage, OSError) as error:
            yield Finding(problem=str(error), images=(image,))
    for key in sorted(library.layers):
        problem = _examined(library, key)
        if problem:
            yield _of_layer(library, key, problem)


def _examined(library: Library, key: LayerKey) -> str:
    try:
        return library.driver.check_layer(key)
    except OSError as error:
        return str(error)


def _of_layer(library: Library, key: LayerKey, problem: str) -> Finding:
    images = [image for image, record in library.catalog.records.items() if key in library.stack(record)]
    containers = [container for container, record in library.rootfs.items() if key in record.layers]
    return Finding(problem=problem, layer=key, images=tuple(images), containers=tuple(containers))


async def repair(library: Library, found: Finding) -> bool:
    """Remove the images, so that they are pulled anew, and the layer with them.

    False when containers use the layer: it goes when they are gone, and until then a pull would take it for whole.
    """
    for image in found.images:
        await library.remove(image)
    if found.containers:
        return False
    await library.sweep()
    return True
