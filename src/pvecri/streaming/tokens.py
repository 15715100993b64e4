# SPDX-License-Identifier: Apache-2.0
"""One-time tokens: what the URL that a CRI call returns holds, and what it stands for."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from pvecri.errors import ResourceExhausted

T = TypeVar("T")

MAX_PENDING = 1000
"""Tokens that may wait to be used, so that forgotten ones cost a bounded amount of memory."""

BYTES = 32


class Tokens(Generic[T]):
    """Each token can be taken once, within its life."""

    def __init__(self, lifetime: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`lifetime` is in the seconds of `clock`."""
        self._lifetime = lifetime
        self._clock = clock
        self._pending: dict[str, tuple[float, T]] = {}  # the oldest first

    def issue(self, value: T) -> str:
        """A new token that stands for `value`, safe in a URL; ResourceExhausted when too many wait."""
        self._drop_expired()
        if len(self._pending) >= MAX_PENDING:
            raise ResourceExhausted(
                f"{MAX_PENDING} streaming URLs wait to be used; each is given up after streaming.url_lifetime "
                f"({self._lifetime:g} s)"
            )
        token = secrets.token_urlsafe(BYTES)
        self._pending[token] = (self._clock() + self._lifetime, value)
        return token

    def take(self, token: str) -> T | None:
        """What the token stands for, once; None when it is unknown, used or expired."""
        self._drop_expired()
        entry = self._pending.pop(token, None)
        return entry[1] if entry else None

    def _drop_expired(self) -> None:
        now = self._clock()
        while self._pending:
            oldest = next(iter(self._pending))
            if self._pending[oldest][0] > now:
                break
            del self._pending[oldest]
