# SPDX-License-Identifier: Apache-2.0
"""Background work survives its exceptions, which are logged and counted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import pytest

from pvecri.backoff import Backoff
from pvecri.errors import Unavailable
from pvecri.observability.metrics_registry import REGISTRY
from pvecri.supervision import Incomplete, Supervisor, all_to_end, attempt, attempt_each

RESTART = Backoff(first=1, maximum=4)


class Pauses:
    """In the place of `asyncio.sleep`: the pauses that were asked for, none of which takes any time."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        await asyncio.sleep(0)


class Work:
    """Raises one outcome after the other; None stands for success. Then it waits."""

    def __init__(self, *outcomes: Exception | None) -> None:
        self._outcomes: Iterator[Exception | None] = iter(outcomes)
        self.runs = 0
        self.waits = asyncio.Event()

    async def __call__(self) -> None:
        for outcome in self._outcomes:
            self.runs += 1
            if outcome is not None:
                raise outcome
            return
        self.waits.set()
        await asyncio.Event().wait()


@pytest.fixture
def pauses() -> Pauses:
    return Pauses()


@pytest.fixture
def supervisor(pauses: Pauses) -> Supervisor:
    return Supervisor(RESTART, pauses)


async def nothing() -> None:
    await asyncio.sleep(0)


def failures(work: str) -> float:
    return REGISTRY.get_sample_value("pvecri_background_failures_total", {"work": work}) or 0.0


async def test_work_is_retried_until_it_succeeds(supervisor: Supervisor, pauses: Pauses) -> None:
    work = Work(OSError(), OverflowError(), Unavailable("away"), OSError(), None)
    await supervisor.until_done("record", work)
    assert (work.runs, pauses.seconds) == (5, [1, 2, 4, 4])
    assert supervisor.tasks == []


async def test_repeated_work_continues_after_a_failure_and_resets_its_backoff(
    supervisor: Supervisor, pauses: Pauses
) -> None:
    work = Work(None, OSError(), OSError(), None, OSError(), None)
    supervisor.repeat("recovery", work, nothing)
    await work.waits.wait()
    assert (work.runs, pauses.seconds) == (6, [1, 2, 1])
    await supervisor.close()


async def test_a_fault_is_logged_with_its_traceback_and_an_answer_in_one_line(
    supervisor: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    await supervisor.until_done("record", Work(OSError(16, "busy"), Unavailable("Proxmox is away"), None), "c1")
    fault, answer = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert fault.getMessage() == "record of c1 (again in 1 s): OSError: [Errno 16] busy"
    assert fault.exc_info is not None
    assert answer.getMessage() == "record of c1 (again in 2 s): Proxmox is away"
    assert not answer.exc_info


async def test_repeated_answer_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    """The tasks of Proxmox that failed differ, and the failure is the same."""
    caplog.set_level(logging.DEBUG)
    answers = iter(
        [
            Unavailable("dataset is busy (task UPID:pve:0000A:0001:6B09:vzdestroy:900:kube@pve!pve:)"),
            Unavailable("dataset is busy (task UPID:pve:0000B:0001:6B09:vzdestroy:900:kube@pve!pve:)"),
            Unavailable("dataset is gone"),
            None,
            Unavailable("dataset is gone"),
        ]
    )

    async def step() -> None:
        if (answer := next(answers)) is not None:
            raise answer

    for _ in range(5):
        await attempt(step, "cleaning up", "removing pod lasting")
    levels = [each.levelname for each in caplog.records if "pod lasting" in each.getMessage()]
    assert levels == ["WARNING", "DEBUG", "WARNING", "WARNING"]


async def test_every_failure_is_counted_by_kind_of_work(supervisor: Supervisor) -> None:
    before = failures("record")
    await supervisor.until_done("record", Work(OSError(), Unavailable("away"), None), "c1")
    await supervisor.once("record", Work(ValueError()), "c2")
    assert failures("record") - before == 3


async def test_work_shows_as_failing_from_the_third_failure_until_it_succeeds(supervisor: Supervisor) -> None:
    work = Work(OSError("one"), OSError("two"), OSError("three"), None)
    shown: list[list[str]] = []

    async def watched() -> None:
        shown.append([str(each) for each in supervisor.failing])
        await work()

    supervisor.repeat("recovery", watched, nothing)
    await work.waits.wait()
    assert shown == [[], [], [], ["recovery failed 3 times in a row: OSError: three"], []]
    await supervisor.close()


async def test_once_never_raises(supervisor: Supervisor) -> None:
    task = supervisor.once("image store", Work(OSError()))
    await task
    assert supervisor.failing == []


async def test_closing_cancels_all_work_and_waits_for_its_end(supervisor: Supervisor) -> None:
    ended: list[str] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append("cleaned up")

    tasks = [supervisor.repeat("a", work, nothing), supervisor.until_done("b", work), supervisor.once("c", work)]
    await asyncio.sleep(0)
    await supervisor.close()
    assert ended == ["cleaned up"] * 3
    assert all(task.cancelled() for task in tasks)
    await supervisor.close()


async def test_closing_ends_work_during_its_backoff() -> None:
    supervisor = Supervisor(Backoff(first=1000, maximum=1000))
    failed = asyncio.Event()

    async def work() -> None:
        failed.set()
        raise OSError

    task = supervisor.until_done("record", work)
    await failed.wait()
    await supervisor.close()
    assert task.cancelled()


async def test_failed_step_does_not_prevent_the_others() -> None:
    done: list[str] = []

    async def fail() -> None:
        raise OSError(16, "busy")

    async def work() -> None:
        done.append("done")

    with pytest.raises(Incomplete, match=r"^recovery: 1 of 3 steps failed, the last with: OSError: .*busy"):
        await attempt_each("recovery", [("first", work), ("second", fail), ("third", work)])
    assert done == ["done", "done"]


async def test_a_cancellation_is_no_failure_of_a_step() -> None:
    async def cancelled() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await attempt(cancelled, "recovery", "a step")


async def test_parts_run_to_completion_and_every_error_is_raised_or_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    done = asyncio.Event()

    async def last() -> None:
        await asyncio.sleep(0)
        done.set()

    first, second = Unavailable("Proxmox is away"), OSError(16, "busy")
    with pytest.raises(Unavailable, match="Proxmox is away"):
        await all_to_end("stop of pod", Work(first), Work(second), last)
    assert done.is_set()
    assert "stop of pod: OSError: [Errno 16] busy" in caplog.text
