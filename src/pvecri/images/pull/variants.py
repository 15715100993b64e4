# SPDX-License-Identifier: Apache-2.0
"""Between fetch and commit: variants of layers, for images in which a lower layer has a symlink (decision 0076).

If an archive has `lib/x` without `lib`, and `lib` is a symlink in a lower layer, then the layer is extracted once
more with that link, into a layer of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pvecri.concurrency import finish
from pvecri.config.settings import ImagesConfig
from pvecri.images.drivers.base import LayerKey
from pvecri.images.library import Library
from pvecri.images.pull.commit import commit_layers
from pvecri.images.pull.fetch import fetch
from pvecri.images.pull.plan import MissingLayer, Plan
from pvecri.images.pull.progress import Transfer
from pvecri.images.registry.processes import Workers
from pvecri.images.store import LayerRecord


@dataclass(frozen=True)
class Variants:
    """The variants that an image has instead of some of its layers, by their number from 0, the lowest."""

    keys: dict[int, LayerKey]
    fetched: tuple[LayerRecord, ...]
    """Those that were not in the library."""


async def fetch_variants(
    library: Library,
    plan: Plan,
    fetched: Sequence[LayerRecord],
    workers: Workers,
    limits: ImagesConfig,
    transfer: Transfer,
) -> Variants:
    """Find the layers of which the image needs variants, and fetch these again if the library does not have them.

    `fetched` are the records of the layers that this pull has committed. Raises what `fetch` raises.
    """
    records = {**library.layers, **{record.key: record for record in fetched}}
    stack = list(library.keys(plan.content.layers))
    variants: dict[int, LayerKey] = {}
    new: list[LayerRecord] = []
    for number, layer in enumerate(plan.content.layers):
        below = [(key, frozenset(records[key].implicit)) for key in stack[: number + 1]]
        links = await asyncio.to_thread(library.driver.hidden_links, below)
        if not links:
            continue
        key = variant_key(stack[number], links)
        if key not in records or layer.digest not in records[key].blobs:
            missing = MissingLayer(key, None, layer, transfer.plan_again(layer), links)
            async with fetch(plan, (missing,), library.driver, await workers.unpacker(), limits) as extracted:
                new += await finish(asyncio.to_thread(commit_layers, library, extracted))
            records[key] = new[-1]
        variants[number] = stack[number] = key
    return Variants(variants, tuple(new))


def variant_key(key: LayerKey, links: Mapping[str, str]) -> LayerKey:
    """The key of the layer `key` extracted with these links: equal for equal links, whatever else is below."""
    lines = (f"{path}\0{target}\n" for path, target in sorted(links.items()))
    return LayerKey(hashlib.sha256(f"{key}\n{''.join(lines)}".encode()).hexdigest())
