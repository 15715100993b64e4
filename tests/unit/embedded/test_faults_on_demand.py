# SPDX-License-Identifier: AGPL-3.0-or-later
from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fakepve import TaskError

from pvecri_embedded.faults import Fault, Faults


@pytest.mark.parametrize(
    "values", [{}, {"task": "vzstart", "request": "GET /version"}, {"task": "vzstart", "colour": "red"}]
)
def test_invalid_fault_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"give either task or request|unknown: colour"):
        Fault.from_json(values)


async def test_fault_happens_the_given_number_of_times() -> None:
    faults = Faults()
    faults.add(Fault(task="vzstart", times=2, text="no luck"))
    for _ in range(2):
        with pytest.raises(TaskError, match="no luck"):
            await faults.before_task("vzstart")
    await faults.before_task("vzstart")


async def test_fault_of_another_type_of_task_does_not_happen() -> None:
    faults = Faults()
    faults.add(Fault(task="vzstart", times=None))
    await faults.before_task("vzstop")


async def test_held_task_continues_after_the_faults_are_cleared() -> None:
    faults = Faults()
    faults.add(Fault(task="vzstart", hold=True))
    held = asyncio.create_task(faults.before_task("vzstart"))
    await asyncio.sleep(0)
    assert not held.done()
    faults.clear()
    await held


async def test_task_with_a_delay_fails_after_it_if_it_has_a_text() -> None:
    faults = Faults()
    faults.add(Fault(task="vzstart", delay=0.01, text="too late"))
    with pytest.raises(TaskError, match="too late"):
        await faults.before_task("vzstart")
    faults.add(Fault(task="vzstart", delay=0.01))
    await faults.before_task("vzstart")
