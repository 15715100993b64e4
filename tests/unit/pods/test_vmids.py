# SPDX-License-Identifier: Apache-2.0
"""VMIDs are allocated round robin, and only those that are not in use."""

from __future__ import annotations

from collections.abc import Set

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvecri.config.settings import VmidRange
from pvecri.errors import ResourceExhausted
from pvecri.pods.sandbox.vmids import VmidAllocator, Vmids


class Cluster:
    """The guests of a cluster, and nodes that create theirs."""

    def __init__(self, limits: VmidRange) -> None:
        self.limits = limits
        self.guests: set[int] = set()
        self.refusals = 0
        self.lists = 0

    def node(self, name: str) -> Vmids:
        async def guests() -> Set[int]:
            self.lists += 1
            return set(self.guests)

        return Vmids(self.limits, name, guests, set)

    async def create(self, vmids: Vmids) -> None:
        refused: set[int] = set()
        while (vmid := await vmids.allocate(refused)) in self.guests:
            self.refusals += 1
            refused.add(vmid)
        self.guests.add(vmid)


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


async def test_free_vmids_are_unknown_until_the_guests_are_listed() -> None:
    cluster = Cluster(VmidRange(first=200, last=209))
    cluster.guests = {100, 200, 205}
    vmids = cluster.node("pve")
    assert vmids.free is None
    await vmids.refresh()
    assert vmids.free == 8
    vmid = await vmids.allocate(set())
    assert vmids.free == 7
    vmids.release(vmid)
    vmids.update({201})
    assert vmids.free == 9


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


async def test_nodes_that_share_a_range_seldom_try_the_same_vmid() -> None:
    """Beginning all at the first VMID, each of 32 nodes had 31 refusals for each pod."""
    cluster = Cluster(VmidRange())
    nodes = [cluster.node(f"pve{number}") for number in range(32)]
    for _ in range(110):
        for node in nodes:
            await cluster.create(node)
    assert len(cluster.guests) == 32 * 110
    assert cluster.refusals < len(cluster.guests) / 20


async def test_nodes_fill_a_range_that_is_scarce() -> None:
    """The last VMIDs are found through the list of guests, not one by one."""
    cluster = Cluster(VmidRange(first=1000, last=1000 + 8 * 20 - 1))
    nodes = [cluster.node(f"pve{number}") for number in range(8)]
    for _ in range(20):
        for node in nodes:
            await cluster.create(node)
    assert len(cluster.guests) == 8 * 20
    with pytest.raises(ResourceExhausted):
        await cluster.create(nodes[0])


async def test_a_row_of_anothers_pods_is_left_with_few_refusals() -> None:
    cluster = Cluster(VmidRange())
    node = cluster.node("pve1")
    first = await node.allocate(set())
    await node.refresh()
    cluster.guests = set(range(first, first + 500))  # after the list was read
    await cluster.create(node)
    assert cluster.refusals < 10
    assert cluster.lists == 1
