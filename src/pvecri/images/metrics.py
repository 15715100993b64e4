# SPDX-License-Identifier: Apache-2.0
"""What pulls have done since the daemon started, as numbers that only grow, but for `running`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from pvecri.errors import PvecriError
from pvecri.model import Value


class PullTotals(Value, frozen=True):
    """`failures` by gRPC status, such as NOT_FOUND; `seconds` of all pulls, `bytes` that came out of layers.

    A pull that others wait for, too, counts once, one of an image that is there already counts as well.
    """

    running: int
    successes: int
    failures: dict[str, int]
    seconds: float
    bytes: int


class PullMetrics:
    """Counts pulls. For one event loop."""

    def __init__(self) -> None:
        self._running = self._successes = self._bytes = 0
        self._failures: dict[str, int] = {}
        self._seconds = 0.0
        self._layers: dict[str, int] = {}

    def totals(self) -> PullTotals:
        """The numbers now."""
        return PullTotals(
            running=self._running,
            successes=self._successes,
            failures=dict(self._failures),
            seconds=self._seconds,
            bytes=self._bytes,
        )

    @contextmanager
    def pulling(self) -> Iterator[None]:
        """Count what happens meanwhile as one pull."""
        begin = time.monotonic()
        self._running += 1
        try:
            yield
            self._successes += 1
        except BaseException as error:
            status = error.status if isinstance(error, PvecriError) else "CANCELLED"
            self._failures[status] = self._failures.get(status, 0) + 1
            raise
        finally:
            self._running -= 1
            self._seconds += time.monotonic() - begin
            if self._running == 0:
                self._layers.clear()

    def unpacked(self, layer: str, size: int) -> None:
        """So much of a layer has been unpacked by now."""
        self._bytes += max(0, size - self._layers.get(layer, 0))
        self._layers[layer] = size
