# SPDX-License-Identifier: Apache-2.0
"""What is measured is counted by how it ended, and timed however it ended."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from support import promtool
from support.figures import names

from pvecri.errors import CommandError, NotFound, ResourceExhausted
from pvecri.observability import metrics
from pvecri.observability.instruments import Counter, Histogram
from pvecri.observability.metrics_registry import REGISTRY, registry

ROOT = Path(__file__).resolve().parents[3]


class Instruments:
    """A counter and a histogram by themselves."""

    def __init__(self) -> None:
        self.ended = Counter("ended", "", ("what", "code"))
        self.seconds = Histogram("seconds", "", ("what",), bounds=(1,))
        self._registry = registry((self.ended, self.seconds))

    def count(self, code: str) -> float | None:
        return self._registry.get_sample_value("pvecri_ended_total", {"what": "work", "code": code})

    @property
    def timed(self) -> float | None:
        return self._registry.get_sample_value("pvecri_seconds_count", {"what": "work"})


def test_success_has_code_ok() -> None:
    found = Instruments()
    with metrics.measured(found.ended, found.seconds, "work"):
        pass
    assert (found.count("OK"), found.timed) == (1, 1)


def test_code_can_be_set() -> None:
    found = Instruments()
    with metrics.measured(found.ended, found.seconds, "work") as measure:
        measure.code = "404"
    assert (found.count("404"), found.count("OK"), found.timed) == (1, None, 1)


def test_code_of_a_response_takes_precedence_over_the_error_for_it() -> None:
    """A redirect of Proxmox's API was counted as UNAVAILABLE, as if there had been no response."""
    found = Instruments()

    def redirected() -> None:
        with metrics.measured(found.ended, found.seconds, "work") as measure:
            measure.code = "302"
            raise NotFound("nothing")

    with pytest.raises(NotFound):
        redirected()
    assert (found.count("302"), found.count("NOT_FOUND"), found.timed) == (1, None, 1)


def test_an_error_is_counted_by_its_status_timed_and_passed_on() -> None:
    found = Instruments()
    with pytest.raises(NotFound), metrics.measured(found.ended, found.seconds, "work"):
        raise NotFound("nothing")
    assert (found.count("NOT_FOUND"), found.timed) == (1, 1)


def test_a_histogram_without_labels_can_be_used() -> None:
    ended, seconds = Counter("a", "", ("code",)), Histogram("b", "", bounds=(1,))
    with metrics.measured(ended, seconds):
        pass
    shown = registry((ended, seconds))
    assert shown.get_sample_value("pvecri_a_total", {"code": "OK"}) == 1
    assert shown.get_sample_value("pvecri_b_count") == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ResourceExhausted("full"), "RESOURCE_EXHAUSTED"),
        (CommandError("runc", 1, ""), "INTERNAL"),
        (asyncio.CancelledError(), "CANCELLED"),
        (GeneratorExit(), "CANCELLED"),
        (TimeoutError(), "DEADLINE_EXCEEDED"),
        (FileNotFoundError(), "INTERNAL"),
    ],
)
def test_every_error_has_a_code(error: BaseException, code: str) -> None:
    assert metrics.code_of(error) == code


class Bounded:
    """A counter and a histogram with a bounded label `name` and a free one."""

    def __init__(self, maximum: int) -> None:
        self.calls = Counter("calls", "", ("name", "method"))
        self.seconds = Histogram("seconds", "", ("name", "method"), bounds=(1,))
        self.registry = registry((self.calls, self.seconds))
        self._recent = metrics.Recent(maximum, ("name",), self.calls, self.seconds)

    def call(self, name: str, method: str = "a") -> None:
        self._recent.use(name)
        self.calls.labels(name, method).inc()
        self.seconds.labels(name, method).observe(1)

    def names(self) -> set[str]:
        return {sample.labels["name"] for family in self.registry.collect() for sample in family.samples}


def test_series_of_the_name_used_longest_ago_are_removed() -> None:
    bounded = Bounded(2)
    for name in ("one", "two"):
        bounded.call(name, "a")
        bounded.call(name, "b")
    bounded.call("one")
    bounded.call("three")
    assert bounded.names() == {"one", "three"}
    assert bounded.registry.get_sample_value("pvecri_calls_total", {"name": "one", "method": "a"}) == 2


def test_counter_of_a_dropped_name_begins_at_0() -> None:
    bounded = Bounded(1)
    for name in ("one", "one", "two", "one"):
        bounded.call(name)
    assert bounded.registry.get_sample_value("pvecri_calls_total", {"name": "one", "method": "a"}) == 1


@pytest.mark.parametrize("name", names())
def test_monitoring_page_describes_every_metric(name: str) -> None:
    assert f"| `{name}` |" in (ROOT / "docs/monitoring.md").read_text()


def test_monitoring_page_and_examples_name_no_metric_that_does_not_exist() -> None:
    known = {*names(), *(f"{name}_{part}" for name in names() for part in ("bucket", "sum", "count"))}
    texts = [
        ROOT / "docs/monitoring.md",
        ROOT / "docs/operations/alerts.md",
        ROOT / "examples/prometheus-rules.yml",
    ]
    named = {name for path in texts for name in re.findall(r"\bpvecri_[a-z_]+", path.read_text())}
    assert named - known == set()


def test_no_metric_has_a_label_without_bounds() -> None:
    allowed = {"method", "code", "phase", "state", "type", "path", "command", "source", "version"}
    allowed |= {"kind", "outcome", "reason", "work", "protocol", "step"}
    allowed |= {"namespace", "container", "plugin"}  # each has a `Recent`, or (CNI) is a name of the configuration
    assert {label for each in metrics.INSTRUMENTS for label in each.label_names} == allowed


@promtool.needed
def test_names_and_help_follow_the_conventions_of_prometheus() -> None:
    assert promtool.run("check", "metrics", text=generate_latest(REGISTRY).decode()) == ""
