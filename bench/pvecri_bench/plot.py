# SPDX-License-Identifier: Apache-2.0
"""Curves as an SVG file, by matplotlib, which is no dependency of the project: `pip install matplotlib`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def write_svg(
    path: Path, title: str, axis: str, curves: Mapping[str, Sequence[tuple[float, float]]], *, log: bool = False
) -> None:
    """Write curves of (x, y) by name; x is `axis`, on a scale of powers of two, y of powers of ten if `log`."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams |= {
        "svg.hashsalt": title,
        "svg.fonttype": "none",
    }  # the same file for the same figures, and small
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log" if log else "linear")
    if not log:
        axes.set_ylim(bottom=0)
    ticks = sorted({x for points in curves.values() for x, _ in points})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlabel(axis)
    axes.set_title(title, fontsize="medium")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, format="svg", metadata={"Date": None})
