# SPDX-License-Identifier: Apache-2.0
"""A cache of messages, serialized or not: the kubelet asks for all objects every second, and few have changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar


class Identified(Protocol):
    """An immutable value of an object with an id; a change of the object makes a new value."""

    @property
    def id(self) -> str:
        """The object's id."""
        ...


V = TypeVar("V", bound=Identified)
M = TypeVar("M")

SLACK = 256
"""Messages of removed objects that may stay in the cache before it is cleared."""


class Translated(Generic[V, M]):
    """Caches the message that `make` builds from a value for as long as the object has that value."""

    def __init__(self, make: Callable[[V], M]) -> None:
        self._make = make
        self._made: dict[str, tuple[V, M]] = {}

    def messages(self, values: Iterable[V], *, alive: int) -> list[M]:
        """The values' messages, which callers must not change; `alive` is the number of objects that exist."""
        self._shrink(alive)
        return [self._message(value) for value in values]

    def message(self, value: V, *, alive: int) -> M:
        """As `messages`, of one value."""
        self._shrink(alive)
        return self._message(value)

    def _shrink(self, alive: int) -> None:
        if len(self._made) > alive + SLACK:
            self._made.clear()

    def _message(self, value: V) -> M:
        known = self._made.get(value.id)
        # By identity: values are frozen, so a change is another object (decision 0004).
        if known is not None and known[0] is value:
            return known[1]
        message = self._make(value)
        self._made[value.id] = (value, message)
        return message
