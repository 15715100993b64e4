# SPDX-License-Identifier: Apache-2.0
"""Finding and repairing damaged images (`pvecri image check`)."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from pvecri.errors import FailedPrecondition
from pvecri.images.drivers.base import LayerKey
from pvecri.images.library import Library
from pvecri.images.manifest import BadImage
from pvecri.model import ContainerId, ImageId, Value

log = logging.getLogger(__name__)


class Finding(Value, frozen=True):
    """A damaged layer, or, if `layer` is empty, the damaged config of an image.

    `images` have the layer; `containers` have root filesystems on top of it.
    """

    problem: str
    layer: LayerKey = LayerKey("")
    images: tuple[ImageId, ...] = ()
    containers: tuple[ContainerId, ...] = ()


def findings(library: Library) -> Iterator[Finding]:
    """Check all configs and layers, one after the other. Reads all of them, so it takes long. Blocks."""
    for image in library.catalog.records:
        try:
            library.configs.read(image)
        except (BadImage, OSError) as error:
            yield Finding(problem=str(error), images=(image,))
    for key in sorted(library.layers):
        try:
            problem = library.driver.check_layer(key)
        except OSError as error:
            problem = str(error)
        if problem:
            images = [image for image, record in library.catalog.records.items() if key in library.stack(record)]
            containers = [container for container, record in library.rootfs.items() if key in record.layers]
            yield Finding(problem=problem, layer=key, images=tuple(images), containers=tuple(containers))


async def repair(library: Library, found: Finding) -> bool:
    """Remove the images, so that they are pulled again, and the layer with them.

    False if containers use the layer: then it stays, and a pull that needs it would not fetch it again. False also
    if one of the images is mounted.
    """
    try:
        for image in found.images:
            await library.remove(image)
    except FailedPrecondition as error:
        log.warning("%s", error)
        return False
    if found.containers:
        return False
    await library.sweep()
    return True
