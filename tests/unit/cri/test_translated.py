# SPDX-License-Identifier: Apache-2.0
"""Messages that are made once for each value."""

from __future__ import annotations

from dataclasses import dataclass

from pvecri.cri.translated import SLACK, Translated


@dataclass(frozen=True)
class Thing:
    id: str
    colour: str


def test_unchanged_value_returns_the_cached_message() -> None:
    translated = Translated[Thing, list[str]](lambda thing: [thing.colour])
    red = Thing("a", "red")
    first = translated.messages([red], alive=1)
    assert translated.messages([red], alive=1)[0] is first[0]


def test_changed_value_returns_a_new_message() -> None:
    translated = Translated[Thing, list[str]](lambda thing: [thing.colour])
    translated.messages([Thing("a", "red")], alive=1)
    assert translated.messages([Thing("a", "blue")], alive=1) == [["blue"]]


def test_cache_drops_messages_of_removed_objects() -> None:
    made: list[str] = []

    def make(thing: Thing) -> str:
        made.append(thing.id)
        return thing.colour

    translated = Translated(make)
    first = Thing("0", "red")
    translated.messages([first], alive=1)
    for number in range(1, SLACK + 2):
        translated.messages([Thing(str(number), "red")], alive=1)
    translated.messages([first], alive=1)
    assert made.count("0") == 2
