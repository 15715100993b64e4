# SPDX-License-Identifier: Apache-2.0
"""Serialized responses of list calls, kept until what they list changes: kubelets repeat the same requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from google.protobuf.message import Message

MOST: Final = 8
"""Responses that are kept: a kubelet has few filters."""

LARGEST: Final = 4 << 20
"""Bytes of all responses that are kept."""


class Answers:
    """The responses of one call, by request."""

    def __init__(self, generation: Callable[[], int]) -> None:
        """`generation` gives a number that has changed if the call's answers may have."""
        self._generation = generation
        self._of = -1
        self._known: dict[bytes, bytes] = {}
        self._bytes = 0

    def answer(self, request: Message, build: Callable[[], bytes]) -> bytes:
        """The known response to an equal request, or that of `build`, which must not await."""
        now = self._generation()
        if now != self._of:
            self._clear()
            self._of = now
        key = request.SerializeToString()
        known = self._known.get(key)
        return self._keep(key, build()) if known is None else known

    def _keep(self, key: bytes, response: bytes) -> bytes:
        if len(self._known) >= MOST or self._bytes + len(response) > LARGEST:
            self._clear()
        if len(response) <= LARGEST:
            self._known[key] = response
            self._bytes += len(response)
        return response

    def _clear(self) -> None:
        self._known.clear()
        self._bytes = 0
