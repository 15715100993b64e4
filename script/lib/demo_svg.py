# SPDX-License-Identifier: Apache-2.0
"""Draws the demo's terminal as an SVG: python -m demo_svg FILE.svg.

The output is that of a run made for the picture, with ids, ports and times as they were. Some steps are left out,
and so is the end of a line that is too long.
"""

from __future__ import annotations

import os
import pty
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = 104
STEPS = (5, 6, 7, 8, 10)
"""The steps that are shown."""

LEFT_OUT = Text("    …", "dim")
STEP = re.compile(r"^ ?(\d+)\. ")

THEME = TerminalTheme(
    background=(22, 27, 34),
    foreground=(201, 209, 217),
    normal=[(110, 118, 129), (255, 123, 114), (63, 185, 80), (210, 153, 34), (88, 166, 255), (188, 140, 255),
            (57, 197, 207), (201, 209, 217)],
)  # fmt: skip

# The fonts are the reader's: a picture in a README may not load any.
FORMAT = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">
<title>script/demo</title>
<style>
.{unique_id}-matrix {{
    font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
    font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width;
}}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def main(target: Path) -> int:
    """Write the picture; the exit status is the demo's if it failed, and nothing is written then."""
    status, output = record([str(ROOT / "script/demo")])
    if status:
        sys.stdout.write(output)
        return status
    target.write_text(draw(excerpt(output)))
    return 0


def record(command: list[str]) -> tuple[int, str]:
    """Run a command on a terminal; returns its exit status and what it printed, with colours."""
    chunks: list[bytes] = []

    def read(terminal: int) -> bytes:
        chunks.append(os.read(terminal, 65536))
        return chunks[-1]

    status = os.waitstatus_to_exitcode(pty.spawn(command, read))
    return status, b"".join(chunks).decode().replace("\r\n", "\n")


def excerpt(output: str) -> list[Text]:
    """The shown steps and the last line; a line `…` is where others are left out."""
    lines = [Text.assemble(("$ ", "green"), ("script/demo", "bold")), LEFT_OUT]
    shown = False
    for line in Text.from_ansi(output).split("\n"):
        step = STEP.match(line.plain)
        if step or line.plain.startswith("demo: "):
            before, shown = shown, step is None or int(step[1]) in STEPS
            if before and not shown:
                lines.append(LEFT_OUT)
            elif shown:
                lines.append(Text())
        if shown and line.plain:
            line.truncate(COLUMNS, overflow="ellipsis")
            lines.append(line)
    return lines


def draw(lines: list[Text]) -> str:
    """A terminal with these lines, as an SVG."""
    console = Console(record=True, width=COLUMNS, file=Path(os.devnull).open("w"), force_terminal=True)  # noqa: SIM115
    for line in lines:
        console.print(line, no_wrap=True, highlight=False)
    picture = console.export_svg(title="script/demo", theme=THEME, code_format=FORMAT, unique_id="demo")
    return re.sub(r"[ \t]+$", "", picture, flags=re.MULTILINE)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
