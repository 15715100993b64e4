# SPDX-License-Identifier: Apache-2.0
"""One-time tokens of streaming URLs."""

from __future__ import annotations

import pytest

from pvecri.errors import ResourceExhausted
from pvecri.streaming.tokens import MAX_PENDING, Tokens


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_token_is_consumed_once() -> None:
    tokens: Tokens[str] = Tokens(60)
    token = tokens.issue("exec")

    assert tokens.consume(token) == "exec"
    assert tokens.consume(token) is None


def test_unknown_token_has_no_request() -> None:
    assert Tokens[str](60).consume("guess") is None


def test_token_expires() -> None:
    clock = Clock()
    tokens: Tokens[str] = Tokens(60, clock)
    early, late = tokens.issue("early"), tokens.issue("late")

    clock.now = 59.9
    assert tokens.consume(early) == "early"
    clock.now = 60
    assert tokens.consume(late) is None


def test_pending_tokens_are_limited_and_expired_ones_removed() -> None:
    clock = Clock()
    tokens: Tokens[int] = Tokens(60, clock)
    for number in range(MAX_PENDING):
        tokens.issue(number)

    with pytest.raises(ResourceExhausted, match=r"streaming\.url_lifetime"):
        tokens.issue(-1)
    clock.now = 60
    assert tokens.consume(tokens.issue(1)) == 1


def test_tokens_cannot_be_guessed() -> None:
    tokens: Tokens[int] = Tokens(60)
    issued = {tokens.issue(number) for number in range(100)}

    assert len(issued) == 100
    assert all(len(token) >= 43 for token in issued)  # 256 bits
