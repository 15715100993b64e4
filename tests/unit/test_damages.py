# SPDX-License-Identifier: Apache-2.0
"""docs/operations/check.md, which script/damaged-node writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from trial.damages import DAMAGES, Damage

PAGE = (Path(__file__).resolve().parents[2] / "docs/operations/check.md").read_text()


def test_page_has_a_section_for_each_damage() -> None:
    sections = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    assert sections == ["A healthy node", *(damage.title for damage in DAMAGES)]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.title)
def test_section_shows_what_was_found(damage: Damage) -> None:
    section = PAGE.partition(f"\n## {damage.title}\n")[2].partition("\n## ")[0]
    assert damage.done in section
    assert any(damage.subject in line and damage.word in line for line in section.splitlines())


def test_only_the_last_damage_stops_the_daemon() -> None:
    assert [damage.without_daemon for damage in DAMAGES] == [False] * (len(DAMAGES) - 1) + [True]
