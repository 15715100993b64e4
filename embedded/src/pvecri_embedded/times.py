# SPDX-License-Identifier: AGPL-3.0-or-later
"""How long the parts of a CT's life take: nothing is added by default, or what a Proxmox node takes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

RATIOS: Mapping[str, float] = {
    "create": 1.0,
    "start": 1.6,
    "stop": 1.3,
    "shutdown": 1.3,
    "destroy": 0.2,
    "config": 0.07,
}
"""What each took on a Proxmox VE 9.2 node, a create on a directory storage being 1. ``config``: PUT config."""


@dataclass(frozen=True)
class TaskTimes:
    """Seconds to add, by what is done: the keys of `RATIOS`."""

    seconds: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> TaskTimes:
        """``create=5,start=3``, or the seconds of a create, with `RATIOS` for the others. Raises ValueError."""
        if "=" not in text:
            create = _seconds(text)
            return cls({what: create * ratio for what, ratio in RATIOS.items()})
        pairs = dict(part.split("=", 1) for part in text.split(","))
        if unknown := pairs.keys() - RATIOS.keys():
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(RATIOS)}")
        return cls({what: _seconds(value) for what, value in pairs.items()})

    async def spend(self, what: str, share: float = 1.0) -> None:
        """Wait for `share` of the time that `what` takes."""
        seconds = self.seconds.get(what, 0.0) * share
        if seconds:
            await asyncio.sleep(seconds)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(f"no time: {text}")
    return value
