# SPDX-License-Identifier: Apache-2.0
"""Third stage of a pull: layers are extracted while they come in, and verified."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from pvecri.concurrency import all_of, beside, finish
from pvecri.config import ImagesConfig
from pvecri.errors import CommandError
from pvecri.images.drivers.base import LayerKey, RootfsDriver
from pvecri.images.manifest import Layer, wrong_diff_id
from pvecri.images.pull.plan import MissingLayer, Plan
from pvecri.images.registry.templates import LAYERS_AT_ONCE
from pvecri.images.unpacking.client import Job, Unpacked, Unpacker


@dataclass(frozen=True)
class Fetched:
    """A verified layer, extracted into a directory of the driver and not committed."""

    key: LayerKey
    layer: Layer
    directory: Path
    unpacked: Unpacked


@asynccontextmanager
async def fetch(
    plan: Plan, batch: tuple[MissingLayer, ...], driver: RootfsDriver, unpacker: Unpacker, limits: ImagesConfig
) -> AsyncIterator[list[Fetched]]:
    """Fetch a batch's layers, LAYERS_AT_ONCE at a time; what is not committed in the context is removed.

    The first failure ends the other fetches. Raises BadImage, and CommandError with skopeo's message.
    """
    directories: list[Path] = []
    slots = asyncio.Semaphore(LAYERS_AT_ONCE)

    def begin() -> None:
        for each in batch:
            directories.append(driver.begin_layer(each.key, each.parent))

    def abort() -> None:
        for directory in directories:
            driver.abort_layer(directory)  # does nothing for a committed one

    async def fetch_layer(missing: MissingLayer, directory: Path) -> Fetched:
        layer, archive = missing.layer, plan.archive_with(missing.layer)
        job = Job(
            layer=layer.digest,
            directory=str(directory),
            max_size=limits.max_layer_size,
            max_entries=limits.max_layer_entries,
            stacked=driver.stacked,
        )
        async with slots:
            if archive is not None:
                pipe = await archive.blob(layer.digest)
            else:
                pipe = await plan.image.proxy.blob(plan.image.number, layer.digest, layer.size)
            async with beside(unpacker.run(job, pipe.fd, missing.transfer.reached)) as unpacking:
                try:
                    await (archive or plan.image.proxy).finish(pipe)
                except CommandError:
                    # A broken pipe: if the unpacker gave up first, its error is the cause.
                    await unpacking
                    raise
                unpacked = await unpacking
        if unpacked.diff_id != layer.diff_id:
            raise wrong_diff_id(layer, unpacked.diff_id)
        missing.transfer.done("template" if archive else "registry")
        return Fetched(missing.key, layer, directory, unpacked)

    try:
        await finish(asyncio.to_thread(begin))
        yield await all_of(fetch_layer(*each) for each in zip(batch, directories, strict=True))
    finally:
        await finish(asyncio.to_thread(abort))
