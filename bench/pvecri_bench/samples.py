# SPDX-License-Identifier: Apache-2.0
"""What was measured, by call and column."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import msgspec


class Summary(msgspec.Struct, frozen=True):
    """Times of one call at one runtime, in milliseconds; `p95` is the smallest that 95 % do not exceed."""

    median: float
    p95: float
    least: float
    most: float
    count: int


class Figure(msgspec.Struct, frozen=True):
    """One number a column, such as memory in MiB or pods a second."""

    name: str
    unit: str
    values: dict[str, float]


class Samples:
    """Collects times of calls. Adding from several threads is safe."""

    def __init__(self) -> None:
        self._times: dict[str, dict[str, list[float]]] = {}

    def add(self, call: str, column: str, milliseconds: float) -> None:
        """One more time of a call at the runtime of a column."""
        self._times.setdefault(call, {}).setdefault(column, []).append(milliseconds)

    def summaries(self) -> dict[str, dict[str, Summary]]:
        """By call, in the order in which they were first made, and column."""
        return {
            call: {column: summarize(times) for column, times in columns.items()}
            for call, columns in self._times.items()
        }


class Figures:
    """Collects figures. Of several values for one figure and column the median counts."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], dict[str, list[float]]] = {}

    def add(self, name: str, unit: str, column: str, value: float) -> None:
        """One value of a figure for a column."""
        self._values.setdefault((name, unit), {}).setdefault(column, []).append(value)

    def all(self) -> list[Figure]:
        """In the order in which they were first added."""
        return [
            Figure(name, unit, {column: statistics.median(values) for column, values in columns.items()})
            for (name, unit), columns in self._values.items()
        ]


def summarize(times: Sequence[float]) -> Summary:
    """Summarize at least one time. Pure."""
    ordered = sorted(times)
    return Summary(
        median=statistics.median(ordered),
        p95=ordered[math.ceil(0.95 * len(ordered)) - 1],
        least=ordered[0],
        most=ordered[-1],
        count=len(ordered),
    )
