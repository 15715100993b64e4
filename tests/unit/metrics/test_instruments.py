# SPDX-License-Identifier: Apache-2.0
"""The daemon's instruments are shown as prometheus_client's own would be."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import prometheus_client as reference
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from pvecri.observability.instruments import Counter, Gauge, Histogram
from pvecri.observability.metrics_registry import registry

BOUNDS = (0.001, 0.25, 1, 120)
TEXT = st.text(st.characters(codec="utf-8"), max_size=5)
CHANGES = st.lists(
    st.tuples(st.sampled_from(("counter", "gauge", "seconds")), TEXT, TEXT, st.floats(0, 200)), max_size=20
)

reference.disable_created_metrics()  # type: ignore[no-untyped-call]


def ours() -> tuple[CollectorRegistry, dict[str, Any]]:
    made: dict[str, Any] = {
        "counter": Counter("counter", "Counts.", ("a", "b")),
        "gauge": Gauge("gauge", "Is.", ("a", "b")),
        "seconds": Histogram("seconds", "Takes.", ("a", "b"), bounds=BOUNDS),
        "single": Counter("single", "Alone."),
        "alone": Histogram("alone", "Alone.", bounds=BOUNDS),
    }
    return registry(made.values()), made


def theirs() -> tuple[CollectorRegistry, dict[str, Any]]:
    found = CollectorRegistry()
    options: dict[str, Any] = {"namespace": "pvecri", "registry": found}
    return found, {
        "counter": reference.Counter("counter", "Counts.", ("a", "b"), **options),
        "gauge": reference.Gauge("gauge", "Is.", ("a", "b"), **options),
        "seconds": reference.Histogram("seconds", "Takes.", ("a", "b"), buckets=BOUNDS, **options),
        "single": reference.Counter("single", "Alone.", **options),
        "alone": reference.Histogram("alone", "Alone.", buckets=BOUNDS, **options),
    }


def change(instrument: Any, value: float) -> None:
    if hasattr(instrument, "observe"):
        instrument.observe(value)
    else:
        instrument.inc(value)


@pytest.mark.parametrize("write", [generate_latest, generate_openmetrics])
@given(changes=CHANGES, alone=st.lists(st.sampled_from((0.0, *BOUNDS, 500.0))))
def test_text_equals_that_of_the_librarys_own_instruments(
    write: Callable[[CollectorRegistry], bytes], changes: list[tuple[str, str, str, float]], alone: list[float]
) -> None:
    texts = []
    for found, made in (ours(), theirs()):
        for name, a, b, value in changes:
            change(made[name].labels(a, b), value)
        for value in alone:
            made["alone"].observe(value)
            made["single"].inc()
        texts.append(write(found))
    assert texts[0] == texts[1]


def test_gauge_shrinks_is_set_and_cleared() -> None:
    gauge = Gauge("gauge", "", ("a",))
    gauge.labels("x").inc(3)
    gauge.labels("x").dec()
    gauge.labels("y").set(7)
    assert [(values, each.value) for values, each in gauge.series()] == [(("x",), 2), (("y",), 7)]
    gauge.clear()
    assert gauge.series() == []


def test_gauge_counts_what_is_in_progress() -> None:
    gauge = Gauge("gauge", "")
    with gauge.track_inprogress(), gauge.track_inprogress():
        assert gauge.value == 2
    assert gauge.value == 0


@pytest.mark.parametrize("values", [(), ("x",), ("x", "y", "z")])
def test_wrong_number_of_label_values_is_refused(values: tuple[str, ...]) -> None:
    if values:
        with pytest.raises(ValueError, match="has the labels"):
            Counter("counter", "", ("a", "b")).labels(*values)


def test_histogram_observes_the_time_of_a_body_that_raises() -> None:
    seconds = Histogram("seconds", "", ("a",), bounds=(60,))
    with suppress(KeyError), seconds.labels("x").time():
        raise KeyError
    assert seconds.labels("x").counts == [1, 0]
    assert seconds.labels("x").sum > 0


def test_combinations_with_some_values_are_removed() -> None:
    counter = Counter("counter", "", ("a", "b"))
    for values in (("x", "1"), ("x", "2"), ("y", "1")):
        counter.labels(*values).inc()
    counter.remove({"a": "x"})
    assert [values for values, _ in counter.series()] == [("y", "1")]
    counter.labels("x", "1").inc()
    assert counter.labels("x", "1").value == 1


def test_threads_lose_no_count() -> None:
    counter, histogram = Counter("counter", ""), Histogram("seconds", "", bounds=(1,))

    def count(_: int) -> None:
        for _ in range(10_000):
            counter.inc()
            histogram.observe(2)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(count, range(4)))
    assert (counter.value, histogram.counts, histogram.sum) == (40_000, [0, 40_000], 80_000)
