# SPDX-License-Identifier: Apache-2.0
"""The results, as tables (Markdown that reads well in a terminal, too) and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from pvecri_bench.machine import Machine
from pvecri_bench.samples import Figure, Summary
from pvecri_bench.sections.proxmox import ApiCosts, Costs

MISSING = "-"


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One run. `columns` are the runtimes' versions by name; ratios are to the column `peer` when there is one.

    Calls are in milliseconds. `load_after` is the load average of the run's last minute.
    """

    when: str
    commit: str
    machine: Machine
    load_after: float
    columns: dict[str, str]
    peer: str
    rounds: int
    calls: dict[str, dict[str, Summary]]
    figures: list[Figure]
    proxmox: Costs | None = None
    failure: str = ""


def write_json(report: Report, path: Path) -> None:
    """Write all of it."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")


def render(report: Report) -> str:
    """The tables, and what is to be known about them."""
    parts = [
        f"{report.when}, commit {report.commit}",
        report.machine.line() + f", after {report.load_after:.1f}",
        ", ".join(f"{name}: {version}" for name, version in report.columns.items()),
    ]
    if report.calls:
        parts += ["", _table(*_calls(report))]
    if report.figures:
        parts += ["", _table(*_figures(report))]
    if report.proxmox is not None:
        parts += ["", _costs("A pod with one container", report.proxmox.pod)]
        parts += [_costs("A container more in a pod", report.proxmox.container)]
    return "\n".join(parts)


def _calls(report: Report) -> tuple[list[str], list[list[str]]]:
    names = [*report.columns]
    head = ["call, ms"]
    for name in names:
        head += [f"{name} median", "p95", "n"]
    rows = []
    for call, columns in report.calls.items():
        cells = [cell for name in names for cell in _cells(columns.get(name))]
        medians = {name: summary.median for name, summary in columns.items()}
        rows.append([call, *cells, *_ratios(report, medians)])
    return head + _ratio_heads(report), rows


def _cells(summary: Summary | None) -> list[str]:
    if summary is None:
        return [MISSING] * 3
    return [_number(summary.median), _number(summary.p95), str(summary.count)]


def _figures(report: Report) -> tuple[list[str], list[list[str]]]:
    rows = []
    for figure in report.figures:
        row = [figure.name, figure.unit]
        row += [_number(figure.values[name]) if name in figure.values else MISSING for name in report.columns]
        rows.append(row + _ratios(report, figure.values))
    return ["figure", "unit", *report.columns, *_ratio_heads(report)], rows


def _compared(report: Report) -> list[str]:
    """The columns that get a ratio: all but the peer's, when there is a peer."""
    return [name for name in report.columns if name != report.peer] if report.peer in report.columns else []


def _ratio_heads(report: Report) -> list[str]:
    return [f"{name} / {report.peer}" for name in _compared(report)]


def _ratios(report: Report, values: Mapping[str, float]) -> list[str]:
    peer = values.get(report.peer)
    return [f"{values[name] / peer:.2f}" if peer and name in values else MISSING for name in _compared(report)]


def _costs(what: str, costs: ApiCosts) -> str:
    tasks = ", ".join(f"{name} {_count(number)}" for name, number in costs.tasks.items()) or "none"
    lines = [
        f"{what}, at the Proxmox API: {_count(costs.changing)} changing requests, "
        f"{_count(costs.reading)} reading, {_count(costs.waiting)} to wait for tasks; tasks: {tasks}"
    ]
    lines += [f"    {_count(number):>6}  {name}" for name, number in costs.requests.items()]
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[index]) for row in (head, *rows)) for index in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(_line(row, widths) for row in (head, rule, *rows))


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(row, widths, strict=True)
    cells = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
    return f"| {' | '.join(cells)} |"


def _number(value: float) -> str:
    """Three digits that mean something."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _count(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
