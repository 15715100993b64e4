# SPDX-License-Identifier: Apache-2.0
"""A streamed list is the same list, in pieces that fit a message."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvecri.cri.chunks import chunks
from pvecri.cri.proto import cri_pb2 as pb


def entries(sizes: list[int]) -> list[pb.Image]:
    return [pb.Image(id="x" * size) for size in sizes]


@given(st.lists(st.integers(0, 40)), st.integers(1, 100))
def test_every_entry_comes_once_and_in_order(sizes: list[int], limit: int) -> None:
    listed = entries(sizes)
    streamed = list(chunks(listed, limit))
    assert [each for chunk in streamed for each in chunk] == listed
    assert all(streamed)


@given(st.lists(st.integers(0, 40)), st.integers(1, 100))
def test_only_an_entry_alone_may_be_larger_than_a_chunk(sizes: list[int], limit: int) -> None:
    for chunk in chunks(entries(sizes), limit):
        assert len(chunk) == 1 or sum(each.ByteSize() for each in chunk) <= limit


@pytest.mark.parametrize(("count", "messages"), [(0, 0), (1, 1), (40, 1), (5000, 3)])
def test_few_entries_are_one_message_and_none_is_no_message(count: int, messages: int) -> None:
    assert len(list(chunks(entries([500] * count)))) == messages
