# SPDX-License-Identifier: AGPL-3.0-or-later
"""The durations of tasks (--task-times)."""

from __future__ import annotations

import pytest

from pvecri_embedded.times import RATIOS, TaskTimes


def test_times_can_be_set_individually() -> None:
    assert TaskTimes.parse("create=5,start=3").seconds == {"create": 5.0, "start": 3.0}


def test_single_time_scales_all_tasks() -> None:
    seconds = TaskTimes.parse("10").seconds
    assert seconds.keys() == RATIOS.keys()
    assert (seconds["create"], seconds["start"], seconds["destroy"]) == (10.0, 16.0, 2.0)


@pytest.mark.parametrize("text", ["", "create", "create=x", "nosuch=1", "-1", "inf", "create=-1"])
def test_invalid_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        TaskTimes.parse(text)
