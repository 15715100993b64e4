# SPDX-License-Identifier: Apache-2.0
"""Pauses between retries grow up to a maximum."""

from __future__ import annotations

from itertools import islice

from pvecri.backoff import Backoff


def test_delays_grow_by_the_factor_up_to_the_maximum() -> None:
    assert list(islice(Backoff(first=1, maximum=10, factor=3).delays(), 5)) == [1, 3, 9, 10, 10]


def test_every_iterator_starts_from_the_first_delay() -> None:
    backoff = Backoff(first=1, maximum=8)
    assert [list(islice(backoff.delays(), 2)) for _ in range(2)] == [[1, 2], [1, 2]]


def test_the_first_delay_is_bounded_too() -> None:
    assert next(Backoff(first=5, maximum=2).delays()) == 2


def test_delays_never_overflow() -> None:
    assert next(islice(Backoff(first=1, maximum=60).delays(), 5000, None)) == 60
