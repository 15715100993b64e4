# SPDX-License-Identifier: Apache-2.0
"""Host IDs of device owners in a user namespace."""

from __future__ import annotations

import pytest

from pvecri.model import IdMapping
from pvecri.oci.devices import host_id

USERS = (
    IdMapping(container_id=1000, host_id=1000, length=1),
    IdMapping(container_id=0, host_id=100_000, length=1000),
)


@pytest.mark.parametrize(
    ("inside", "expected"),
    [
        (0, 100_000),
        (44, 100_044),
        (999, 100_999),
        (1000, 1000),
        (1001, 100_000),
        (65_534, 100_000),
    ],
)
def test_host_id_follows_the_mapping_and_unmapped_ids_become_root(inside: int, expected: int) -> None:
    assert host_id(inside, USERS) == expected


def test_host_id_is_zero_if_the_namespace_does_not_map_root() -> None:
    assert host_id(5, USERS[:1]) == 0
    assert host_id(0, ()) == 0
