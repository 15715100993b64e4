# SPDX-License-Identifier: Apache-2.0
"""VMIDs are allocated round robin, and only those that are not in use."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvecri.config import VmidRange
from pvecri.errors import ResourceExhausted
from pvecri.pods.sandbox.vmids import VmidAllocator


def allocator(first: int = 200, last: int = 203) -> VmidAllocator:
    return VmidAllocator(VmidRange(first=first, last=last))


def test_both_ends_of_the_range_are_allocated() -> None:
    vmids = allocator()
    assert [vmids.allocate() for _ in range(4)] == [200, 201, 202, 203]


def test_error_for_a_full_range_names_the_setting() -> None:
    vmids = allocator(200, 200)
    vmids.allocate()
    with pytest.raises(ResourceExhausted) as caught:
        vmids.allocate()
    assert str(caught.value) == "all 1 VMIDs from 200 to 200 are in use (proxmox.vmid_range sets the range)"


def test_vmids_in_use_are_skipped() -> None:
    vmids = allocator()
    vmids.set_used({200, 202, 100, 999})
    assert [vmids.allocate(), vmids.allocate()] == [201, 203]


def test_released_vmid_is_reused_last() -> None:
    vmids = allocator()
    first = vmids.allocate()
    vmids.release(first)
    vmids.release(first)
    assert [vmids.allocate() for _ in range(4)] == [201, 202, 203, 200]


def test_set_used_replaces_earlier_allocations() -> None:
    vmids = allocator()
    for _ in range(4):
        vmids.allocate()
    vmids.set_used({200, 201, 203})
    assert vmids.allocate() == 202


@given(st.sets(st.integers(200, 220)), st.integers(0, 30))
def test_every_free_vmid_is_allocated_exactly_once(used: set[int], attempts: int) -> None:
    vmids = allocator(200, 219)
    vmids.set_used(used)
    free = set(range(200, 220)) - used
    allocated = [vmids.allocate() for _ in range(min(attempts, len(free)))]
    assert len(set(allocated)) == len(allocated)
    assert set(allocated) <= free
    if attempts >= len(free):
        with pytest.raises(ResourceExhausted):
            vmids.allocate()
