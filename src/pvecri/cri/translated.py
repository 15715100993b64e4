# SPDX-License-Identifier: Apache-2.0
"""Messages that are asked for again and again, made once for each value.

The kubelet lists all pods and containers every second or so, and few of them have changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar


class Identified(Protocol):
    """A value that stands for a thing with an id; a change of the thing makes a new value."""

    @property
    def id(self) -> str:
        """The thing's id."""
        ...


V = TypeVar("V", bound=Identified)
M = TypeVar("M")

SLACK = 256
"""How many messages of things that are gone may be kept before they are looked for."""


class Translated(Generic[V, M]):
    """Keeps the message that `make` made of a value for as long as the thing has that value."""

    def __init__(self, make: Callable[[V], M]) -> None:
        self._make = make
        self._made: dict[str, tuple[V, M]] = {}

    def messages(self, values: Iterable[V], *, alive: int) -> list[M]:
        """The values' messages, not to be changed; `alive` is how many things there are."""
        if len(self._made) > alive + SLACK:
            self._made.clear()
        return [self._message(value) for value in values]

    def _message(self, value: V) -> M:
        known = self._made.get(value.id)
        if known is not None and known[0] is value:
            return known[1]
        message = self._make(value)
        self._made[value.id] = (value, message)
        return message
