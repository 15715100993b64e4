# SPDX-License-Identifier: Apache-2.0
"""The configuration's files: the main one, and those in `conf.d` beside it, which override single settings.

Read in the order of their names, as the drop-ins of CRI-O and systemd; of a setting in several files the last one
counts, as a whole.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from pvecri.config.settings import Config, ConfigError, Section, from_toml, place, read_toml

DROP_INS = "conf.d"

_SETTING = re.compile(r"\b([a-z_]+)\.([a-z_]+)\b")


class Loaded(msgspec.Struct, frozen=True):
    """A configuration, and the file of each setting (`proxmox.url`) that is in one."""

    config: Config
    origins: dict[str, Path]


def load(path: Path) -> Loaded:
    """Read the file at `path`, and `conf.d/*.toml` beside it.

    ConfigError, with the file and the setting, if one is missing, unreadable or invalid, or if settings contradict
    each other.
    """
    merged: dict[str, dict[str, Any]] = {}
    origins: dict[str, Path] = {}
    for file in [path, *sorted((path.parent / DROP_INS).glob("*.toml"))]:
        # Each file alone is valid, for an error in it to name it. A section that is no table is refused here.
        given = read_toml(file)
        for section, settings in given.items():
            merged.setdefault(section, {}).update(settings)
            origins |= {f"{section}.{key}": file for key in settings}
    try:
        return Loaded(from_toml(merged), origins)
    except ConfigError as error:
        # They contradict each other: the last file that has one of the settings in question is the one to look at.
        named = {origins[name]: name for name in map(".".join, _SETTING.findall(str(error))) if name in origins}
        last = max(named, key=lambda file: (file != path, file.name), default=path)
        setting = tuple(named.get(last, "").split("."))
        raise ConfigError(f"{place(last.read_text(), str(last), setting)}: {error}") from error


# -- shown as TOML --------------------------------------------------------------------------------------------


def default_toml() -> str:
    """Every setting with its default, as comments: a file to begin with."""
    lines = ["# Every setting of pvecri, with its default. docs/configuration.md describes them."]
    defaults = Config()
    for section, settings in _sections(defaults):
        described = (type(settings).__doc__ or "").strip()
        lines += ["", *_comment(described), f"[{section}]"]
        lines += [f"# {name} ={f' {value}' if value else ''}" for name, value in _settings(settings)]
    return "\n".join(lines) + "\n"


def dump(loaded: Config) -> str:
    """The configuration in effect as TOML, without settings that are unset. Secrets are in files of their own."""
    lines = []
    for section, settings in _sections(loaded):
        lines += [f"[{section}]", *(f"{name} = {value}" for name, value in _settings(settings) if value), ""]
    return "\n".join(lines)


def differences(loaded: Loaded) -> list[str]:
    """A line for each setting that differs from its default: its value, the default, and the file it is from."""
    defaults = {
        f"{section}.{name}": value
        for section, settings in _sections(Config())
        for name, value in _settings(settings)
    }
    lines = []
    for section, settings in _sections(loaded.config):
        for name, value in _settings(settings):
            setting = f"{section}.{name}"
            if value != defaults[setting]:
                origin = loaded.origins.get(setting, "derived")
                lines.append(f"{setting} = {value}  # default: {defaults[setting] or 'unset'}; {origin}")
    return lines


def _sections(shown: Config) -> Iterator[tuple[str, Section]]:
    return ((name, getattr(shown, name)) for name in Config.__struct_fields__)


def _settings(section: Section) -> Iterator[tuple[str, str]]:
    """Name and value as TOML; the value is empty if it is unset."""
    for name in section.__struct_fields__:
        value = getattr(section, name)
        yield name, "" if value is None else _toml(value)


def _toml(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case Mapping():
            return _table(value.items())
        case Section():
            return _table((name, getattr(value, name)) for name in value.__struct_fields__)
        case tuple() | list():
            return f"[{', '.join(map(_toml, value))}]"
        case _:
            # A TOML basic string is a JSON string, but for DEL (TOML 1.0, String).
            return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _table(items: Any) -> str:
    entries = ", ".join(f"{_key(name)} = {_toml(value)}" for name, value in items)
    return f"{{ {entries} }}" if entries else "{}"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml(name)


def _comment(text: str) -> list[str]:
    paragraphs = textwrap.dedent(text.replace("\n    ", "\n")).split("\n\n")
    lines = [line for each in paragraphs for line in [*textwrap.wrap(each, 100), ""]]
    return [f"# {line}".rstrip() for line in lines[:-1]]
