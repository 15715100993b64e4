# SPDX-License-Identifier: Apache-2.0
"""docs/demo.svg, which script/demo-svg draws, and how it is drawn."""

from __future__ import annotations

import html
import re
from pathlib import Path
from xml.etree import ElementTree

import demo_svg

ROOT = Path(__file__).resolve().parents[2]
PICTURE = (ROOT / "docs/demo.svg").read_text()


def lines(picture: str) -> list[str]:
    """The text of a picture, each line as one string."""
    rows: dict[str, str] = {}
    for y, text in re.findall(r'<text [^>]*y="([^"]*)"[^>]*>([^<]*)</text>', picture):
        rows[y] = rows.get(y, "") + html.unescape(text).replace("\xa0", " ")
    return [row.strip() for row in rows.values()]


def test_picture_is_small_valid_and_loads_nothing() -> None:
    assert len(PICTURE) < 60_000
    assert ElementTree.fromstring(PICTURE).tag == "{http://www.w3.org/2000/svg}svg"
    assert re.findall(r"(?:href|src|url\()[^)]*//", PICTURE) == []


def test_picture_shows_steps_that_the_demo_has() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "script/lib/trial").glob("*.py"))
    steps = [row.partition(". ")[2] for row in lines(PICTURE) if demo_svg.STEP.match(row)]
    assert len(steps) == len(demo_svg.STEPS)
    assert [step for step in steps if step not in sources] == []


def test_steps_that_are_left_out_leave_a_mark() -> None:
    output = "\n".join(f"\n\x1b[1m{number:2}. Step {number}.\x1b[0m\n    said" for number in range(1, 15))
    shown = [line.plain.strip() for line in demo_svg.excerpt(f"bootstrap: …\n{output}\n\ndemo: the end\n")]
    assert [line for line in shown if line and line != "said"] == [
        "$ script/demo", "…",
        *(f"{number}. Step {number}." for number in (5, 6, 7, 8)), "…", "10. Step 10.", "…", "demo: the end",
    ]  # fmt: skip
    assert lines(demo_svg.draw(demo_svg.excerpt(output)))[-1] == "…"
