# SPDX-License-Identifier: Apache-2.0
"""Figures that the benchmark computes from its samples."""

from __future__ import annotations

import pytest
from pvecri_bench import samples
from pvecri_bench.machine import Machine
from pvecri_bench.report import Report, render
from pvecri_bench.samples import Figure, Figures, Samples

MACHINE = Machine(
    cores=2, memory_mib=4096, system="Debian", kernel="6.1", cgroups="v2", python="3.11", load=0.5,
    versions={"runc": "1.1.5"},
)  # fmt: skip


def report(collected: Samples, *figures: Figure, peer: str = "peer") -> Report:
    columns = {"ours": "1", "peer": "2"} if peer else {"ours": "1"}
    return Report(
        when="today", commit="abc", machine=MACHINE, load_after=1.0, columns=columns, peer=peer, rounds=2,
        calls=collected.summaries(), figures=list(figures),
    )  # fmt: skip


def row(text: str, name: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {name} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize(
    ("times", "median", "p95"),
    [([5], 5, 5), ([1, 3], 2, 3), (range(1, 21), 10.5, 19), (range(1, 101), 50.5, 95)],
)
def test_95th_percentile_is_a_measured_value(times: list[float], median: float, p95: float) -> None:
    summary = samples.summarize(list(times))
    assert (summary.median, summary.p95, summary.count) == (median, p95, len(times))


def test_each_column_has_its_own_samples_of_a_call() -> None:
    collected = Samples()
    for column, time in (("ours", 1.0), ("peer", 4.0), ("ours", 3.0)):
        collected.add("Version", column, time)
    summary = collected.summaries()["Version"]
    assert (summary["ours"].median, summary["ours"].count, summary["peer"].median) == (2.0, 2, 4.0)


def test_figure_with_several_values_is_their_median() -> None:
    figures = Figures()
    for value in (1.0, 9.0, 2.0):
        figures.add("memory", "MiB", "ours", value)
    assert figures.all() == [Figure("memory", "MiB", {"ours": 2.0})]


def test_ratio_compares_the_medians() -> None:
    collected = Samples()
    collected.add("Version", "ours", 3.0)
    collected.add("Version", "peer", 2.0)
    assert row(render(report(collected)), "Version") == [
        "Version",
        "3.00",
        "3.00",
        "1",
        "2.00",
        "2.00",
        "1",
        "1.50",
    ]


def test_missing_value_has_no_ratio() -> None:
    collected = Samples()
    collected.add("Version", "ours", 3.0)
    text = render(report(collected, Figure("helpers", "MiB", {"peer": 2.0})))
    assert row(text, "Version") == ["Version", "3.00", "3.00", "1", "-", "-", "-", "-"]
    assert row(text, "helpers") == ["helpers", "MiB", "-", "2.00", "-"]


def test_a_run_without_a_peer_shows_no_ratios() -> None:
    collected = Samples()
    collected.add("Version", "ours", 12.34)
    assert row(render(report(collected, peer="")), "Version") == ["Version", "12.3", "12.3", "1"]
