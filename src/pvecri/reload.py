# SPDX-License-Identifier: Apache-2.0
"""SIGHUP: reads the configuration again, and applies what can be changed while the daemon runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from pvecri.config import files
from pvecri.config.settings import Config, ConfigError

log = logging.getLogger(__name__)


class Live(NamedTuple):
    """Settings (`log.level`) that can change together while the daemon runs.

    `apply` is called at each reload, also if they are the same: a certificate's file keeps its name when it is
    renewed. It returns whether they are in effect now; ConfigError if they are invalid. Then nothing is changed.
    """

    settings: tuple[str, ...]
    apply: Callable[[Config], bool]


class Reloader:
    """Keeps the configuration in effect."""

    def __init__(self, path: Path, config: Config, live: Sequence[Live]) -> None:
        """`path` is the main file; `config` is in effect."""
        self._path = path
        self._config = config
        self._live = live

    def reload(self) -> None:
        """Read the files and apply them. A file that is invalid changes nothing, and is reported in the log."""
        try:
            wanted = files.load(self._path).config
        except ConfigError as error:
            log.warning("the configuration is not reloaded, the one before stays in effect: %s", error)
            return
        changed = [setting for each in self._live for setting in self._apply(each, wanted)]
        waiting = [
            setting for setting in _settings(wanted) if _value(wanted, setting) != _value(self._config, setting)
        ]
        log.info("the configuration was reloaded: %s", f"{', '.join(changed)} changed" if changed else "no change")
        if waiting:
            log.warning("the change of %s needs a restart of pvecri; pods keep running", ", ".join(waiting))

    def _apply(self, live: Live, wanted: Config) -> list[str]:
        """The settings that have changed and are in effect now."""
        try:
            if not live.apply(wanted):
                return []
        except ConfigError as error:
            log.warning("%s: not reloaded: %s", self._path, error)
            return []
        changed = [each for each in live.settings if _value(wanted, each) != _value(self._config, each)]
        for setting in changed:
            self._config = _with(self._config, setting, wanted)
        return changed


def _settings(config: Config) -> list[str]:
    sections = Config.__struct_fields__
    return [f"{section}.{name}" for section in sections for name in getattr(config, section).__struct_fields__]


def _value(config: Config, setting: str) -> object:
    section, name = setting.split(".")
    return getattr(getattr(config, section), name)


def _with(config: Config, setting: str, source: Config) -> Config:
    section, name = setting.split(".")
    changed = replace(getattr(config, section), **{name: _value(source, setting)})
    return replace(config, **{section: changed})
