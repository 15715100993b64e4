# SPDX-License-Identifier: Apache-2.0
"""VMIDs are proposed in turn, and only those that nobody is known to have."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvecri.config import VmidRange
from pvecri.errors import ResourceExhausted
from pvecri.pods.sandbox.vmids import VmidAllocator


def allocator(first: int = 200, last: int = 203) -> VmidAllocator:
    return VmidAllocator(VmidRange(first=first, last=last))


def test_both_ends_of_the_range_are_given_out() -> None:
    vmids = allocator()
    assert [vmids.take() for _ in range(4)] == [200, 201, 202, 203]


def test_a_full_range_is_told_with_the_setting_that_widens_it() -> None:
    vmids = allocator(200, 200)
    vmids.take()
    with pytest.raises(ResourceExhausted) as caught:
        vmids.take()
    assert str(caught.value) == "all 1 VMIDs from 200 to 200 are taken (proxmox.vmid_range sets the range)"


def test_what_others_have_is_passed_over() -> None:
    vmids = allocator()
    vmids.replace({200, 202, 100, 999})
    assert [vmids.take(), vmids.take()] == [201, 203]


def test_a_number_given_back_comes_last() -> None:
    vmids = allocator()
    first = vmids.take()
    vmids.give_back(first)
    vmids.give_back(first)
    assert [vmids.take() for _ in range(4)] == [201, 202, 203, 200]


def test_learning_anew_forgets_what_has_gone() -> None:
    vmids = allocator()
    for _ in range(4):
        vmids.take()
    vmids.replace({200, 201, 203})
    assert vmids.take() == 202


@given(st.sets(st.integers(200, 220)), st.integers(0, 30))
def test_no_number_is_given_out_twice_and_every_free_one_once(taken: set[int], proposals: int) -> None:
    vmids = allocator(200, 219)
    vmids.replace(taken)
    free = set(range(200, 220)) - taken
    given_out = [vmids.take() for _ in range(min(proposals, len(free)))]
    assert len(set(given_out)) == len(given_out)
    assert set(given_out) <= free
    if proposals >= len(free):
        with pytest.raises(ResourceExhausted):
            vmids.take()
