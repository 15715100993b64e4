# SPDX-License-Identifier: Apache-2.0
"""How many warm CTs of a kind there should be: as many as pods have asked for lately, within bounds. Pure."""

from __future__ import annotations

from collections import deque
from enum import Enum

WINDOW = 600.0
"""Seconds for which a pod counts as demand for a warm CT."""

LOW_MEMORY = 0.1
"""Share of available memory of the node below which no CT is kept warm."""


class CtKind(Enum):
    """What cannot be changed on a running CT and differs from pod to pod."""

    UNPRIVILEGED = "unprivileged"
    PRIVILEGED = "privileged"

    @classmethod
    def of(cls, *, privileged: bool) -> CtKind:
        """The kind of a CT that is privileged or is not."""
        return cls.PRIVILEGED if privileged else cls.UNPRIVILEGED


class Demand:
    """The pods of one kind in the last WINDOW seconds. Times are seconds of any one monotonic clock."""

    def __init__(self, limit: int) -> None:
        """`limit` is the setting for this kind, 0 for none."""
        self.limit = limit
        self._requests: deque[float] = deque(maxlen=max(limit, 1))  # more would not change the target

    def record(self, now: float) -> None:
        """A pod has asked for a CT of this kind."""
        self._requests.append(now)

    def target(self, now: float, *, in_use: bool, available_memory: float) -> int:
        """How many CTs should wait.

        One for each pod of the last WINDOW seconds, at least one while the node has pods of this kind (`in_use`),
        and at most the limit; none if `available_memory`, a share, is below LOW_MEMORY.
        """
        while self._requests and self._requests[0] <= now - WINDOW:
            self._requests.popleft()
        if available_memory < LOW_MEMORY:
            return 0
        return min(self.limit, max(len(self._requests), int(in_use)))
