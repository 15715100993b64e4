# SPDX-License-Identifier: Apache-2.0
"""CPU rates (nanocores), from the difference of two samples of a counter."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

SECOND = 1_000_000_000

WINDOW = SECOND
"""Nanoseconds between two samples, at least: a rate over less is noise."""


@dataclass(slots=True)
class _Sample:
    """The last sample that ended a window, and the rate over that window."""

    time: int
    usage: int
    rate: int | None = None


class Rates:
    """The rate of each counter, by id of pod or container, since the last sample at least WINDOW ago."""

    def __init__(self) -> None:
        self._samples: dict[str, _Sample] = {}

    def observe(self, key: str, time: int, usage: int) -> int | None:
        """Record a sample (both in nanoseconds); returns the rate in nanoseconds of CPU per second (nanocores).

        Samples closer together than WINDOW return the rate of the last window; None before the first.
        """
        # A counter that decreases belongs to a new cgroup: the container or the CT was restarted.
        last = self._samples.get(key)
        if last is None or usage < last.usage:
            self._samples[key] = _Sample(time, usage)
            return None
        elapsed = time - last.time
        if elapsed < WINDOW:
            return last.rate
        rate = (usage - last.usage) * SECOND // elapsed
        self._samples[key] = _Sample(time, usage, rate)
        return rate

    def keep(self, keys: Collection[str]) -> None:
        """Drop the samples of all others."""
        for key in self._samples.keys() - keys:
            del self._samples[key]
