# SPDX-License-Identifier: Apache-2.0
"""How far a pull is: what of its layers there was already, what comes in, and what came out of that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from pvecri import metrics
from pvecri.images.manifest import Layer
from pvecri.model import Value


class Progress(Value, frozen=True):
    """Of one pull, or of several together.

    `total` is the bytes of the `layers` that are fetched, compressed as registries have them, `fetched` how many
    of them have come in, `unpacked` what came out. `done` layers have come in whole; `present` were there already.
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

    def __init__(self, layer: Layer, moved: Callable[[], None]) -> None:
        self._moved = moved
        self.size = layer.size
        self.fetched = self.unpacked = 0
        self.is_done = False

    def reached(self, fetched: int, unpacked: int) -> None:
        """So many bytes have come in and out by now."""
        fetched = min(fetched, self.size)  # the program that decompresses reads a little besides
        metrics.FETCHED_BYTES.inc(max(0, fetched - self.fetched))
        metrics.UNPACKED_BYTES.inc(max(0, unpacked - self.unpacked))
        self.fetched, self.unpacked = max(self.fetched, fetched), max(self.unpacked, unpacked)
        self._moved()

    def done(self, source: str = "registry") -> None:
        """All of it has come in and out, from the `registry` or a `template`."""
        self.reached(self.size, self.unpacked)
        self.is_done = True
        metrics.LAYERS.labels(source).inc()


class Transfer:
    """One pull, for the one who waits for it and for the metrics. For one event loop."""

    def __init__(
        self,
        moved: Callable[[], None] = lambda: None,
        elsewhere: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """`moved` is called whenever bytes have; `elsewhere` makes a context for while another fetches them."""
        self._moved = moved
        self.elsewhere = elsewhere
        self._layers: tuple[LayerTransfer, ...] = ()
        self._present = 0

    def plan(self, missing: Sequence[Layer], present: int) -> tuple[LayerTransfer, ...]:
        """Say which layers are to be fetched, and how many were there; those to tell of each layer."""
        metrics.LAYERS.labels("store").inc(present)
        self._present = present
        self._layers = tuple(LayerTransfer(layer, self._moved) for layer in missing)
        return self._layers

    @property
    def progress(self) -> Progress:
        """How far it is now."""
        layers = self._layers
        return Progress(
            fetched=sum(layer.fetched for layer in layers),
            total=sum(layer.size for layer in layers),
            unpacked=sum(layer.unpacked for layer in layers),
            done=sum(layer.is_done for layer in layers),
            layers=len(layers),
            present=self._present,
        )
