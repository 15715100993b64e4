# SPDX-License-Identifier: Apache-2.0
"""Looking whether a layer's files can be read at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

_CHUNK: Final = 1 << 20


def unreadable(tree: Path) -> str:
    """The first file or directory below `tree` that the storage does not give out, and why; else empty. Blocks."""
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
