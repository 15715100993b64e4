# SPDX-License-Identifier: Apache-2.0
"""The progress of a pull, for the command line, the metrics and the timeout of a pull that stalls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext

from pvecri.config.settings import ImagesConfig
from pvecri.errors import DeadlineExceeded
from pvecri.images.manifest import Layer
from pvecri.images.reference import Reference
from pvecri.model import Value
from pvecri.observability import metrics


class Progress(Value, frozen=True):
    """The progress of one pull, or the sum of several.

    `total` is the size in bytes of the `layers` to fetch, compressed as registries have them; `fetched` of these
    bytes have arrived and were extracted to `unpacked` bytes. `done` layers are complete, `present` ones were in
    the store before.
    """

    fetched: int = 0
    total: int = 0
    unpacked: int = 0
    done: int = 0
    layers: int = 0
    present: int = 0

    def __add__(self, other: Progress) -> Progress:
        return Progress(**{name: getattr(self, name) + getattr(other, name) for name in self.__struct_fields__})


class LayerTransfer:
    """One layer of a pull."""

    def __init__(self, layer: Layer, on_progress: Callable[[], None]) -> None:
        self._on_progress = on_progress
        self.size = layer.size
        self.fetched = self.unpacked = 0
        self.is_done = False

    def reached(self, fetched: int, unpacked: int) -> None:
        """Record the bytes fetched and extracted so far; smaller values than before change nothing."""
        fetched = min(fetched, self.size)  # zstd(1) counts more than it takes from the pipe: its own files, too
        metrics.FETCHED_BYTES.inc(max(0, fetched - self.fetched))
        metrics.UNPACKED_BYTES.inc(max(0, unpacked - self.unpacked))
        self.fetched, self.unpacked = max(self.fetched, fetched), max(self.unpacked, unpacked)
        self._on_progress()

    def done(self, source: str = "registry") -> None:
        """Record that the layer is complete. `source` is a label of the metric: `registry` or `template`."""
        self.reached(self.size, self.unpacked)
        self.is_done = True
        metrics.LAYER_BYTES.observe(self.size)
        metrics.LAYERS.labels(source).inc()


class Transfer:
    """One pull. For one event loop."""

    def __init__(
        self,
        on_progress: Callable[[], None] = lambda: None,
        stall_suspended: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """`stall_suspended` makes a context in which no progress is expected, for Proxmox reports none."""
        self._on_progress = on_progress
        self.stall_suspended = stall_suspended
        self._layers: tuple[LayerTransfer, ...] = ()
        self._present = 0

    def plan(self, missing: Sequence[Layer], layers: Sequence[Layer]) -> tuple[LayerTransfer, ...]:
        """Set the layers to fetch of all of the image's `layers`: the others are in the store."""
        self._present = len(layers) - len(missing)
        metrics.LAYERS.labels("store").inc(self._present)
        skipped = sum(layer.size for layer in layers) - sum(layer.size for layer in missing)
        metrics.SKIPPED_BYTES.inc(max(0, skipped))
        self._layers = tuple(LayerTransfer(layer, self._on_progress) for layer in missing)
        return self._layers

    def plan_again(self, layer: Layer) -> LayerTransfer:
        """Add a layer that is fetched once more."""
        transfer = LayerTransfer(layer, self._on_progress)
        self._layers += (transfer,)
        return transfer

    @property
    def progress(self) -> Progress:
        layers = self._layers
        return Progress(
            fetched=sum(layer.fetched for layer in layers),
            total=sum(layer.size for layer in layers),
            unpacked=sum(layer.unpacked for layer in layers),
            done=sum(layer.is_done for layer in layers),
            layers=len(layers),
            present=self._present,
        )


class StallTimeout:
    """A timeout that starts anew with each `reset`; 0 seconds is none. Made when it is to start."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.timeout = asyncio.timeout(seconds or None)

    def reset(self) -> None:
        if self._seconds and not self.timeout.expired():
            self.timeout.reschedule(asyncio.get_running_loop().time() + self._seconds)

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Stop the clock while the context lasts."""
        if not self.timeout.expired():
            self.timeout.reschedule(None)
        yield
        self.reset()


@asynccontextmanager
async def time_limits(reference: Reference, config: ImagesConfig, stall: StallTimeout) -> AsyncIterator[None]:
    """End the body with DeadlineExceeded after images.pull_timeout or images.pull_progress_timeout."""
    try:
        async with asyncio.timeout(config.pull_timeout), stall.timeout:
            yield
    except TimeoutError as error:
        limit = f"done in {config.pull_timeout:g} s (images.pull_timeout)"
        if stall.timeout.expired():
            limit = f"a byte in {config.pull_progress_timeout:g} s (images.pull_progress_timeout)"
        raise DeadlineExceeded(f"pulling {reference}: not {limit}") from error
