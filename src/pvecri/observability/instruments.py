# SPDX-License-Identifier: Apache-2.0
"""Counters, gauges and histograms as Prometheus has them, which only count.

`prometheus_client` shows them (metrics_registry.py). It is not imported to count: it loads an HTTP server, WSGI
and e-mail, three megabytes that a node without metrics.listen does not need (decision 0098).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from time import perf_counter
from typing import ClassVar, Self

_lock = Lock()
"""Of all values: worker threads count, too."""


class Instrument:
    """A metric, or with labels one for each combination of their values.

    `name` is without the prefix and without the suffix of counters.
    """

    kind: ClassVar[str]

    def __init__(self, name: str, text: str, labels: Sequence[str] = ()) -> None:
        self.name = name
        self.text = text
        self.label_names = tuple(labels)
        self._children: dict[tuple[str, ...], Self] = {}

    def labels(self, *values: str) -> Self:
        """The metric with these values of its labels; itself if it has none. ValueError for a wrong number."""
        child = self._children.get(values)
        return child if child is not None else self._add(values)

    def _add(self, values: tuple[str, ...]) -> Self:
        if len(values) != len(self.label_names):
            raise ValueError(f"{self.name} has the labels {self.label_names}, not {values}")
        return self._children.setdefault(values, self._child()) if values else self

    def _child(self) -> Self:
        return type(self)(self.name, self.text)

    def series(self) -> list[tuple[tuple[str, ...], Self]]:
        """Each combination of label values with its metric, in order of their first use."""
        return list(self._children.items()) if self.label_names else [((), self)]

    def remove(self, wanted: Mapping[str, str]) -> None:
        """Forget the combinations that have these values of some of the labels."""
        places = [(self.label_names.index(name), value) for name, value in wanted.items()]
        for values in list(self._children):
            if all(values[place] == value for place, value in places):
                self._children.pop(values, None)

    def clear(self) -> None:
        """Forget all combinations of label values."""
        self._children.clear()


class Counter(Instrument):
    """A number that only grows."""

    kind = "counter"

    def __init__(self, name: str, text: str, labels: Sequence[str] = ()) -> None:
        super().__init__(name, text, labels)
        self.value = 0.0

    def inc(self, amount: float = 1) -> None:
        """Add `amount`, which is not negative."""
        with _lock:
            self.value += amount


class Gauge(Counter):
    """A number that grows and shrinks."""

    kind = "gauge"

    def dec(self, amount: float = 1) -> None:
        """Subtract `amount`."""
        self.inc(-amount)

    def set(self, value: float) -> None:
        """Replace the number."""
        self.value = float(value)

    @contextmanager
    def track_inprogress(self) -> Iterator[None]:
        """One more while the context lasts."""
        self.inc()
        try:
            yield
        finally:
            self.dec()


class Histogram(Instrument):
    """How often values up to each of some bounds were observed."""

    kind = "histogram"

    def __init__(self, name: str, text: str, labels: Sequence[str] = (), *, bounds: Sequence[float]) -> None:
        """`bounds` are in ascending order, without infinity."""
        super().__init__(name, text, labels)
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        """Of each bucket by itself; the last one is that above all bounds."""
        self.sum = 0.0

    def _child(self) -> Self:
        return type(self)(self.name, self.text, bounds=self.bounds)

    def observe(self, value: float) -> None:
        """Count a value."""
        with _lock:
            self.counts[bisect_left(self.bounds, value)] += 1
            self.sum += value

    @contextmanager
    def time(self) -> Iterator[None]:
        """Observe the seconds that the context's body takes, however it ends."""
        begin = perf_counter()
        try:
            yield
        finally:
            self.observe(perf_counter() - begin)
