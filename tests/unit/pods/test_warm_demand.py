# SPDX-License-Identifier: Apache-2.0
"""How many CTs wait for pods, by the pods of the last minutes."""

from __future__ import annotations

import pytest

from pvecri.pods.warm.demand import LOW_MEMORY, WINDOW, CtKind, Demand

PLENTY = 0.5


def demand(limit: int, *requests: float) -> Demand:
    made = Demand(limit)
    for at in requests:
        made.record(at)
    return made


@pytest.mark.parametrize(
    ("limit", "requests", "in_use", "target"),
    [
        (4, (), False, 0),
        (4, (), True, 1),
        (4, (0.0,), False, 1),
        (4, (0.0, 1.0, 2.0), True, 3),
        (4, (0.0,) * 50, True, 4),
        (0, (0.0,) * 50, True, 0),
    ],
)
def test_target_is_the_number_of_recent_pods_within_the_limit(
    limit: int, requests: tuple[float, ...], in_use: bool, target: int
) -> None:
    found = demand(limit, *requests).target(3.0, in_use=in_use, available_memory=PLENTY)
    assert found == target


def test_pods_of_earlier_times_do_not_count() -> None:
    pods = demand(4, 0.0, 100.0)
    assert pods.target(WINDOW - 1, in_use=False, available_memory=PLENTY) == 2
    assert pods.target(WINDOW, in_use=False, available_memory=PLENTY) == 1
    assert pods.target(WINDOW + 100, in_use=False, available_memory=PLENTY) == 0
    assert pods.target(WINDOW + 100, in_use=True, available_memory=PLENTY) == 1


def test_node_that_is_short_of_memory_keeps_none() -> None:
    pods = demand(4, 0.0, 0.0)
    assert pods.target(1.0, in_use=True, available_memory=LOW_MEMORY - 0.01) == 0
    assert pods.target(1.0, in_use=True, available_memory=LOW_MEMORY) == 2


def test_kind_is_by_privileged_alone() -> None:
    assert [CtKind.of(privileged=value) for value in (False, True)] == [CtKind.UNPRIVILEGED, CtKind.PRIVILEGED]
