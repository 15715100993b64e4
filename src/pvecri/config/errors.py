# SPDX-License-Identifier: Apache-2.0
"""Errors of the configuration in plain words: what msgspec finds, with the setting's name, value and line."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import date, time
from typing import Any

import msgspec
from msgspec import inspect

_KINDS = {
    "str": "text in quotes",
    "Path": "a path in quotes",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
}
_BOUNDS = {">=": "at least", ">": "more than", "<=": "at most", "<": "less than"}
_PATH = re.compile(r"(.*?)(?: - at `(?:key in )?\$(.*)`)?", re.DOTALL)
_STEP = re.compile(r"\.(\w+)|\[(\d+|\.\.\.)\]")


class Explained(msgspec.Struct, frozen=True):
    """An error: the setting's path, such as `("proxmox", "tags", 1)`, and what is wrong with it."""

    path: tuple[str | int, ...]
    problem: str

    def __str__(self) -> str:
        return f"{name_of(self.path)}: {self.problem}" if self.path else self.problem


def explain(
    error: msgspec.ValidationError,
    given: dict[str, Any],
    kind: type,
    validate: Callable[[dict[str, Any]], object],
) -> Explained:
    """The error that `validate` raised for `given`, which is to become a `kind`."""
    match = _PATH.fullmatch(str(error))
    assert match is not None, "it matches everything"
    text, place = match[1], match[2] or ""
    path = tuple(_path(place, given, validate))
    expected = _type_at(kind, path)
    if field := re.fullmatch(r"Object contains unknown field `(.*)`", text):
        return Explained((*path, field[1]), _unknown(field[1], path, expected))
    if field := re.fullmatch(r"Object missing required field `(.*)`", text):
        return Explained((*path, field[1]), "must be set")
    return Explained(path, f"{_requirement(text, expected)}, and is {_shown(_at(given, path))}")


def name_of(path: tuple[str | int, ...]) -> str:
    """A setting's name as TOML has it, such as `network.classes."a b".tag`; items of lists by their number."""
    name = ""
    for part in path:
        if isinstance(part, int):
            name += f"[{part}]"
            continue
        key = part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else json.dumps(part, ensure_ascii=False)
        name += f".{key}" if name else key
    return name


def line_of(text: str, path: tuple[str | int, ...]) -> int | None:
    """The number of the line of a TOML text that sets `path`, or else the table that it is in."""
    keys = [each for each in path if isinstance(each, str)]
    best, found = 0, None
    for number, set_here in _settings(text):
        if set_here == keys[: len(set_here)] and len(set_here) > best:
            best, found = len(set_here), number
    return found


def _settings(text: str) -> Iterator[tuple[int, list[str]]]:
    """Lines with a table's header or a setting, and its whole name. Not what is in strings of several lines."""
    table: list[str] = []
    inside = ""
    for number, line in enumerate(text.splitlines(), 1):
        if not inside:
            if header := re.match(r"\s*\[([^\[\]]+)\]\s*(?:#.*)?$", line):
                table = _keys(header[1])
                yield number, table
            elif setting := re.match(
                r"""\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""", line
            ):
                yield number, table + _keys(setting[1])
        for quotes in re.findall(r'"""|\'\'\'', line):
            inside = quotes if not inside else "" if quotes == inside else inside


def _keys(name: str) -> list[str]:
    return [bare or quoted[1:-1] for bare, quoted in re.findall(r"""([\w-]+)|("[^"]*"|'[^']*')""", name)]


def _path(place: str, given: Any, validate: Callable[[dict[str, Any]], object]) -> Iterator[str | int]:
    """The steps of msgspec's JSONPath. It names no keys of tables of any name (`[...]`): they are tried."""
    passed: list[str | int] = []
    for name, item in _STEP.findall(place):
        step: str | int = name or (item if item == "..." else int(item))
        if step == "...":
            step = next((key for key in _at(given, passed) if _fails(given, passed, key, validate)), "...")
        passed.append(step)
        yield step


def _fails(
    given: dict[str, Any], path: list[str | int], key: str, validate: Callable[[dict[str, Any]], object]
) -> bool:
    """Whether it is this entry of the table at `path` that is invalid."""
    only: Any = {key: _at(given, [*path, key])}
    for step in reversed(path):
        only = {step: only}
    try:
        validate(only)
    except msgspec.ValidationError:
        return True
    return False


def _at(given: Any, path: tuple[str | int, ...] | list[str | int]) -> Any:
    for step in path:
        given = given[step]
    return given


def _type_at(kind: type, path: tuple[str | int, ...]) -> inspect.Type:
    found: inspect.Type = inspect.type_info(kind)
    for step in path:
        if isinstance(found, inspect.StructType):
            found = next((each.type for each in found.fields if each.name == step), inspect.AnyType())
        elif isinstance(found, inspect.DictType):
            found = found.value_type
        elif isinstance(found, inspect.VarTupleType | inspect.ListType):
            found = found.item_type
    return found


def _unknown(name: str, path: tuple[str | int, ...], table: inspect.Type) -> str:
    what = "setting" if path else "section"
    known = [each.name for each in table.fields] if isinstance(table, inspect.StructType) else []
    similar = difflib.get_close_matches(name, known, n=1)
    return f"there is no such {what}" + (f"; is {name_of((*path, similar[0]))} meant?" if similar else "")


def _requirement(text: str, expected: inspect.Type) -> str:
    """What a value must be, by msgspec's message."""
    if bound := re.fullmatch(r"Expected `\w+` (>=|>|<=|<) (\S+)", text):
        return f"must be {_BOUNDS[bound[1]]} {bound[2].removesuffix('.0')}"
    if pattern := re.fullmatch(r"Expected `str` matching regex '(.*)'", text):
        return f"must match the pattern {pattern[1]}"
    if text.startswith("Invalid enum value") and isinstance(expected, inspect.LiteralType):
        return f"must be one of {', '.join(map(_shown, expected.values))}"
    if kinds := re.match(r"Expected `([^`]*)`", text):
        return f"must be {' or '.join(_KINDS.get(each, each) for each in kinds[1].split(' | ') if each != 'null')}"
    return "is not valid"


def _shown(value: object) -> str:
    """A value of a TOML file, as it stands there; of lists and tables only what they are."""
    match value:
        case Mapping():
            return "a table"
        case list():
            return "a list"
        case date() | time():
            return f"the time {value}" if isinstance(value, time) else f"the date {value}"
        case str() | bool() | int() | float():
            return json.dumps(value, ensure_ascii=False)
        case _:
            return str(value)
