# SPDX-License-Identifier: Apache-2.0
"""Writes the manual pages and shell completions of pvecri: documents.py FOLDER.

Commands and options are those of the argument parser, settings those of docs/configuration.md, so that neither is
written twice. go-md2man makes the pages.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import shtab

import pvecri
from pvecri.cli import command_line

COMPLETIONS = {"bash": "pvecri", "zsh": "_pvecri", "fish": "pvecri.fish"}
"""The file in which each shell looks for the completions of `pvecri`."""


def main(folder: Path) -> None:
    """Write man/ and completions/ below `folder`."""
    parser = command_line._parser()
    pages = folder / "man"
    pages.mkdir(parents=True, exist_ok=True)
    for source in sorted(Path("packaging/man").glob("*.md")):
        text = source.read_text().replace("VERSION", pvecri.__version__)
        text = text.replace("COMMANDS-OF-THE-PARSER\n", "".join(commands(parser)))
        text = text.replace("SETTINGS-OF-THE-DOCUMENTATION\n", settings())
        write_page(text, pages / source.stem)
    (folder / "completions").mkdir(exist_ok=True)
    for shell, name in COMPLETIONS.items():
        (folder / "completions" / name).write_text(shtab.complete(parser, shell))


def write_page(markdown: str, page: Path) -> None:
    """Write a page in roff."""
    command = ["go-md2man", "-in", "/dev/stdin", "-out", "/dev/stdout"]
    roff = subprocess.run(command, input=markdown, text=True, check=True, stdout=subprocess.PIPE).stdout
    page.write_text(roff.replace(r"\fC", r"\fB"))  # terminals have no font C, and groff warns


def commands(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The commands of a parser, those below them included, each with its arguments, as Markdown."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help for choice in action._choices_actions}
            for name, command in action.choices.items():
                if name not in helps:  # an alias
                    continue
                yield f"## {command.prog}\n{plain(helps[name] or command.description or '')}\n\n"
                yield from (argument(each) for each in command._actions if is_documented(each))
                yield from commands(command)


def is_documented(action: argparse.Action) -> bool:
    """Whether the action is an argument or option of its own, and not a list of commands, nor --help."""
    hidden = isinstance(action, (argparse._HelpAction, argparse._SubParsersAction))
    return not hidden and action.help != argparse.SUPPRESS


def argument(action: argparse.Action) -> str:
    """One argument or option, as Markdown."""
    value = str(action.metavar or action.dest).upper()
    names = ", ".join(f"**{name}**" for name in action.option_strings) or f"*{value}*"
    if action.option_strings and action.nargs != 0:
        names += f" *{value}*"
    text = (action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%")
    return f"{names}\n: {plain(text)}\n\n"


def settings() -> str:
    """docs/configuration.md without its title and first paragraphs; tables as lists, which man(1) can wrap."""
    text = Path("docs/configuration.md").read_text()
    _, _, body = text.partition("\n## ")
    lines = [shown for line in f"## {body}".splitlines() if (shown := setting(line)) is not None]
    return plain(led_in("\n".join(lines)), code=True) + "\n"


def led_in(text: str) -> str:
    """A paragraph before each indented example, as go-md2man takes one after a definition for a part of it."""
    return re.sub(r"^(\*\*.*\n: .*\n\n+)(?= {4})", r"\1For example:\n\n", text, flags=re.MULTILINE)


def setting(line: str) -> str | None:
    """A line of the documentation. A table's row is a definition; its heading and rule are left out."""
    if not line.startswith("|"):
        return line
    cells = [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    if not cells[0].startswith("`"):
        return None
    first, *others = (cell for cell in cells if cell)
    return f"**{first.strip('`')}**\n: {'; '.join(others)}\n"


def plain(text: str, *, code: bool = False) -> str:
    """Text without links, whose targets are files, and, if not `code`, without Markdown's marks."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return text if code else re.sub(r"([*_<>\[\]`])", r"\\\1", text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
