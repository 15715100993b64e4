# SPDX-License-Identifier: Apache-2.0
"""CPU per time is the difference of two samples that are far enough apart."""

from __future__ import annotations

from pvecri.pods.usage.cpu_rate import SECOND, WINDOW, Rates


def test_one_sample_gives_no_rate() -> None:
    assert Rates().observe("a", 10 * SECOND, 500) is None


def test_half_a_core_is_500_million_nanocores() -> None:
    rates = Rates()
    rates.observe("a", 10 * SECOND, 1 * SECOND)
    assert rates.observe("a", 14 * SECOND, 3 * SECOND) == 500_000_000


def test_samples_close_together_share_the_rate_of_the_last_window() -> None:
    rates = Rates()
    rates.observe("a", 0, 0)
    assert rates.observe("a", WINDOW - 1, 7) is None
    assert rates.observe("a", 2 * SECOND, SECOND) == 500_000_000
    assert rates.observe("a", 2 * SECOND + 1, 2 * SECOND) == 500_000_000
    assert rates.observe("a", 3 * SECOND, SECOND) == 0


def test_reset_counter_starts_a_new_window() -> None:
    rates = Rates()
    rates.observe("a", 0, 5 * SECOND)
    assert rates.observe("a", 2 * SECOND, SECOND) is None
    assert rates.observe("a", 4 * SECOND, 2 * SECOND) == 500_000_000


def test_counters_are_independent_and_dropped_after_removal() -> None:
    rates = Rates()
    for key in ("a", "b"):
        rates.observe(key, 0, 0)
    rates.keep({"b"})
    assert rates.observe("a", 2 * SECOND, SECOND) is None
    assert rates.observe("b", 2 * SECOND, SECOND) == 500_000_000
