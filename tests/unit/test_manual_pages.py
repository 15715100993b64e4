# SPDX-License-Identifier: Apache-2.0
"""The manual pages, as packaging/debian/documents.py writes them for the package."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from pvecri.cli import command_line
from pvecri.config.settings import Config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the manual pages, in roff."""
    if shutil.which("go-md2man") is None:
        pytest.skip("go-md2man is not installed: script/bootstrap tests")
    folder = tmp_path_factory.mktemp("documents")
    subprocess.run([sys.executable, "packaging/debian/documents.py", folder], cwd=ROOT, check=True)
    return folder / "man"


def plain(page: Path) -> str:
    """A page's text without roff's escapes and fonts."""
    return re.sub(r"\\f[BIRP]", "", page.read_text()).replace("\\-", "-").replace("\\&", "")


def settings() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every `section.setting`, and the keys of its table if it is one."""
    for section in msgspec.structs.fields(Config):
        for setting in msgspec.structs.fields(section.type):
            table = isinstance(setting.default, msgspec.Struct)
            keys = tuple(each.name for each in msgspec.structs.fields(setting.type)) if table else ()
            yield f"{section.name}.{setting.name}", keys


def commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, list[str]]]:
    """Every command and its options."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                shown = (each for each in command._actions if each.help != argparse.SUPPRESS)
                yield command.prog, [option for each in shown for option in each.option_strings]
                yield from commands(command)


def test_page_of_the_configuration_defines_every_setting_and_the_keys_of_its_table(pages: Path) -> None:
    definitions = dict(re.findall(r"^\.TP\n(\S+)\n(.*)$", plain(pages / "pvecri.toml.5"), re.MULTILINE))
    for name, keys in settings():
        assert name in definitions
        assert [key for key in keys if key not in definitions[name]] == [], name


def test_examples_of_the_configuration_page_keep_their_lines(pages: Path) -> None:
    documented = re.findall(r"^ {4}(\S.*)$", (ROOT / "docs/configuration.md").read_text(), re.MULTILINE)
    shown = plain(pages / "pvecri.toml.5").splitlines()
    assert [line for line in documented if line not in shown] == []


def test_page_of_the_commands_has_every_option(pages: Path) -> None:
    page = plain(pages / "pvecri.1")
    for command, options in commands(command_line._parser()):
        section = page.partition(f".SH {command}\n")[2] or page.partition(f".SS {command}\n")[2]
        missing = [option for option in options if option not in {"-h", "--help"} and option not in section]
        assert missing == [], command
