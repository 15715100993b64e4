# SPDX-License-Identifier: Apache-2.0
"""The pauses between the tries of something that failed, or between two polls."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """Exponential back-off: `first` seconds, then `factor` times the pause before, `maximum` at most.

    Without jitter: what retries here is one daemon, on a lock or a part of its own node.
    """

    first: float
    maximum: float
    factor: float = 2.0

    def delays(self) -> Iterator[float]:
        """The pauses in seconds, without end. A new iterator begins at `first` again."""
        delay = self.first
        while True:
            yield min(delay, self.maximum)
            delay = min(delay * self.factor, self.maximum)
