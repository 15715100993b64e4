# SPDX-License-Identifier: Apache-2.0
"""One-time tokens in the URLs that CRI calls return."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from pvecri.errors import ResourceExhausted

T = TypeVar("T")

MAX_PENDING = 1000
"""The maximum number of unused tokens: each keeps its request in memory."""

BYTES = 32


class Tokens(Generic[T]):
    """Issues tokens, each of which can be consumed once within its lifetime."""

    def __init__(self, lifetime: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`lifetime` is in seconds of `clock`."""
        self._lifetime = lifetime
        self._clock = clock
        self._pending: dict[str, tuple[float, T]] = {}  # the oldest first

    def issue(self, value: T) -> str:
        """A new URL-safe token for `value`; ResourceExhausted at MAX_PENDING."""
        self._drop_expired()
        if len(self._pending) >= MAX_PENDING:
            raise ResourceExhausted(
                f"{MAX_PENDING} streaming URLs are unused; each expires after streaming.url_lifetime "
                f"({self._lifetime:g} s)"
            )
        # The token is all that authenticates a client: the port takes connections from whoever can reach it.
        token = secrets.token_urlsafe(BYTES)
        self._pending[token] = (self._clock() + self._lifetime, value)
        return token

    def consume(self, token: str) -> T | None:
        """The token's value; None if it is unknown, used or expired."""
        self._drop_expired()
        entry = self._pending.pop(token, None)
        return entry[1] if entry else None

    def _drop_expired(self) -> None:
        now = self._clock()
        while self._pending:  # in order of issue, and all have the same lifetime
            oldest = next(iter(self._pending))
            if self._pending[oldest][0] > now:
                break
            del self._pending[oldest]
