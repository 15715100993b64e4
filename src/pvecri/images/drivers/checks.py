# SPDX-License-Identifier: Apache-2.0
"""Checking that a layer's files can be read."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

_CHUNK: Final = 1 << 20


def unreadable(tree: Path) -> str:
    """The error of the first file or directory below `tree` that cannot be read; empty if all can. Blocks."""
    problems: list[str] = []
    for directory, _, names in os.walk(tree, onerror=lambda error: problems.append(str(error))):
        for name in names:
            try:
                _read(Path(directory, name))
            except OSError as error:
                problems.append(str(error))
        if problems:
            return problems[0]
    return ""


def _read(path: Path) -> None:
    if stat.S_ISREG(path.lstat().st_mode):
        with path.open("rb", buffering=0) as file:
            while file.read(_CHUNK):
                pass
