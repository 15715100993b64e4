# SPDX-License-Identifier: Apache-2.0
"""Third stage of a pull: layers are extracted while they come in, and verified."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from pvecri.concurrency import all_of, beside, finish
from pvecri.config.settings import ImagesConfig
from pvecri.errors import CommandError
from pvecri.images.drivers.base import LayerKey, RootfsDriver
from pvecri.images.manifest import Layer, wrong_diff_id
from pvecri.images.pull.plan import MissingLayer, Plan
from pvecri.images.pull.repeat import is_transient, repeated
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

    The first failure ends the other fetches; a transient one only after further attempts. Raises Unavailable,
    BadImage, and CommandError with skopeo's message.
    """
    directories: list[Path] = []
    slots = asyncio.Semaphore(LAYERS_AT_ONCE)

    def begin(missing: MissingLayer) -> Path:
        directories.append(directory := driver.begin_layer(missing.key, missing.parent))
        return directory

    def abort() -> None:
        for directory in directories:
            driver.abort_layer(directory)  # does nothing for a committed one

    async def attempt(missing: MissingLayer) -> Fetched:
        async with slots:
            directory = await finish(asyncio.to_thread(begin, missing))
            try:
                unpacked = await _extract(plan, missing, directory, driver, unpacker, limits)
            except CommandError:  # another attempt may follow: the space of this one is free for it
                await finish(asyncio.to_thread(driver.abort_layer, directory))
                raise
        return Fetched(missing.key, missing.layer, directory, unpacked)

    async def fetch_layer(missing: MissingLayer) -> Fetched:
        layer = missing.layer
        fetched = await repeated(plan.image.reference, f"layer {layer.digest}", lambda: attempt(missing))
        if fetched.unpacked.diff_id != layer.extracted_digest:
            raise wrong_diff_id(layer, fetched.unpacked.diff_id)
        missing.transfer.done("template" if plan.archive_with(layer) else "registry")
        return fetched

    try:
        yield await all_of(fetch_layer(each) for each in batch)
    finally:
        await finish(asyncio.to_thread(abort))


async def _extract(
    plan: Plan,
    missing: MissingLayer,
    directory: Path,
    driver: RootfsDriver,
    unpacker: Unpacker,
    limits: ImagesConfig,
) -> Unpacked:
    """Extract a layer into `directory` while it arrives."""
    layer, archive = missing.layer, plan.archive_with(missing.layer)
    job = Job(
        layer=layer.digest,
        directory=str(directory),
        max_size=limits.max_layer_size,
        max_entries=limits.max_layer_entries,
        stacked=driver.stacked,
        file=layer.file,
        links=dict(missing.links),
    )
    if archive is not None:
        pipe = await archive.blob(layer.digest)
    else:
        pipe = await plan.image.proxy.blob(plan.image.number, layer.digest, layer.size)
    async with beside(unpacker.run(job, pipe.fd, missing.transfer.reached)) as unpacking:
        try:
            await (archive or plan.image.proxy).finish(pipe)
        except CommandError as failure:
            # A blob that was cut off cannot be unpacked either. But if the unpacker gave up first, skopeo has a
            # broken pipe, and the unpacker's error is the cause.
            if not is_transient(plan.image.reference, failure):
                await unpacking
            raise
        return await unpacking
