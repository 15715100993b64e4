# SPDX-License-Identifier: AGPL-3.0-or-later
"""How long tasks take, as the command line says."""

from __future__ import annotations

import pytest

from pvecri_embedded.times import RATIOS, TaskTimes


def test_times_are_given_one_by_one() -> None:
    assert TaskTimes.parse("create=5,start=3").seconds == {"create": 5.0, "start": 3.0}


def test_time_of_a_create_alone_gives_all_others_in_proportion() -> None:
    seconds = TaskTimes.parse("10").seconds
    assert seconds.keys() == RATIOS.keys()
    assert (seconds["create"], seconds["start"], seconds["destroy"]) == (10.0, 16.0, 2.0)


@pytest.mark.parametrize("text", ["", "create", "create=x", "nosuch=1", "-1", "inf", "create=-1"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        TaskTimes.parse(text)
