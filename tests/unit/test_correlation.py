# SPDX-License-Identifier: Apache-2.0
"""One ID for all that an operation does."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

import pytest

from pvecri.observability import correlation
from pvecri.observability.correlation import Operation, operation
from pvecri.supervision import Supervisor

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


@pytest.mark.parametrize(
    ("traceparent", "trace"),
    [
        (TRACEPARENT, TRACE),
        (f"00-{TRACE}-00f067aa0ba902b7-00", TRACE),
        (f"01-{TRACE}-00f067aa0ba902b7-01-more", TRACE),
        (f"ff-{TRACE}-00f067aa0ba902b7-01", ""),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", ""),
        (f"00-{TRACE}-{'0' * 16}-01", ""),
        (f"00-{TRACE.upper()}-00f067aa0ba902b7-01", ""),
        (f"00-{TRACE}\n-00f067aa0ba902b7-01", ""),
        ("", ""),
    ],
)
def test_trace_id_is_that_of_a_valid_traceparent(traceparent: str, trace: str) -> None:
    assert correlation.trace_id(traceparent) == trace


def test_operation_without_a_traceparent_gets_an_id_of_its_own() -> None:
    with operation("Version") as first, operation("Version") as second:
        assert first.id != second.id
        assert re.fullmatch("[0-9a-f]{32}", first.id)


async def test_tasks_and_threads_belong_to_the_operation_that_starts_them() -> None:
    async def in_task() -> tuple[str, str]:
        return correlation.current_id(), await asyncio.to_thread(correlation.current_id)

    with operation("RunPodSandbox", traceparent=TRACEPARENT):
        assert await asyncio.create_task(in_task()) == (TRACE, TRACE)
    assert correlation.current() is None


async def test_fields_that_a_task_finds_out_are_the_operations() -> None:
    async def in_task() -> None:
        correlation.annotate(vmid="900000", pod_id="")
        correlation.annotate_missing(vmid="900001", container_id="c")

    with operation("CreateContainer", fields={"pod_id": "p"}) as found:
        await asyncio.create_task(in_task())
    assert found.fields == {"pod_id": "p", "vmid": "900000", "container_id": "c"}


async def test_generator_that_is_closed_by_another_task_ends_its_operation() -> None:
    async def stream() -> AsyncIterator[str]:
        with operation("GetContainerEvents"):
            while True:
                yield correlation.current_id()

    messages = stream()
    assert await anext(messages)
    await asyncio.create_task(messages.aclose())  # type: ignore[attr-defined]


async def test_each_run_of_background_work_is_an_operation_with_its_cause() -> None:
    runs: list[Operation | None] = []
    causes: list[str] = []

    async def step() -> None:
        runs.append(correlation.current())
        causes.append(correlation.cause())
        if len(runs) == 1:
            raise OSError("busy")

    async def at_once(_: float) -> None:
        return

    supervisor = Supervisor(sleep=at_once)
    with operation("StartContainer", traceparent=TRACEPARENT):
        task = supervisor.until_done("watch of container", step, "c1")
    await task
    first, second = (each for each in runs if each)
    assert first.name == second.name == "watch of container of c1"
    assert first.caused_by == second.caused_by == TRACE
    assert causes == [TRACE, TRACE]  # also of what this work would start
    assert len({first.id, second.id, TRACE}) == 3
