# SPDX-License-Identifier: Apache-2.0
"""Prometheus' promtool, for tests of what Prometheus reads."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

PROGRAM = shutil.which("promtool")

needed = pytest.mark.skipif(PROGRAM is None, reason="needs promtool, of Debian's package prometheus")
"""Marks a test that calls it."""


def run(*arguments: str | Path, text: str = "") -> str:
    """Its output, with `text` as its input; an AssertionError has what it found."""
    assert PROGRAM is not None
    command = [PROGRAM, *arguments]
    ended = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def run_on(document: object, directory: Path, *arguments: str) -> str:
    """As `run`, on a file with `document` in the directory."""
    path = directory / "document.yml"
    path.write_text(json.dumps(document))  # which is YAML, too
    return run(*arguments, path)
