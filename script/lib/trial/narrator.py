# SPDX-License-Identifier: Apache-2.0
"""How the demo speaks: numbered steps of one sentence, what was called, what came back, the time it took."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

BOLD, DIM, GREEN, RED = "1", "2", "32", "31"


class Narrator:
    """Colours only on a terminal. `current` is the step under way, or the last one."""

    def __init__(self) -> None:
        self._colours = sys.stdout.isatty()
        self._number = 0
        self.current = "the start"

    @contextmanager
    def step(self, sentence: str) -> Iterator[None]:
        """One step; its time is told when it has succeeded."""
        self._number += 1
        self.current = f"step {self._number}: {sentence.rstrip('.')}"
        self._print(f"\n{self._number:2}. {sentence}", BOLD)
        began = time.monotonic()
        yield
        self._print(f"    ({time.monotonic() - began:.2f} s)", DIM)

    def call(self, text: str) -> None:
        """A command or RPC that is made."""
        self._print(f"    > {text}", DIM)

    def show(self, text: str) -> None:
        """What came back."""
        for line in text.rstrip("\n").splitlines():
            self._print(f"      {line}")

    def end(self, text: str, *, good: bool) -> None:
        """The last line."""
        self._print(f"\n{text}", GREEN if good else RED)

    def _print(self, text: str, colour: str = "") -> None:
        if colour and self._colours:
            text = f"\x1b[{colour}m{text}\x1b[0m"
        print(text, flush=True)
