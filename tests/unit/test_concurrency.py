# SPDX-License-Identifier: Apache-2.0
"""Work that completes despite a cancellation, and work that several callers share."""

from __future__ import annotations

import asyncio
import threading

import pytest

from pvecri.concurrency import SharedTasks, finish, in_own_thread


async def test_started_work_completes_before_the_cancellation() -> None:
    begun, go, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        await go.wait()
        done.set()

    caller = asyncio.ensure_future(finish(work()))
    await begun.wait()
    caller.cancel()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert done.is_set()


async def test_concurrent_callers_share_one_run() -> None:
    runs = 0

    async def work() -> int:
        nonlocal runs
        runs += 1
        await asyncio.sleep(0)
        return runs

    shared = SharedTasks[int]()
    assert await asyncio.gather(*(shared.run("key", work) for _ in range(5))) == [1] * 5
    assert await shared.run("key", work) == 2


async def test_error_is_raised_to_every_caller() -> None:
    async def work() -> int:
        await asyncio.sleep(0)
        raise LookupError

    shared = SharedTasks[int]()
    results = await asyncio.gather(*(shared.run("key", work) for _ in range(3)), return_exceptions=True)
    assert [type(each) for each in results] == [LookupError] * 3


async def test_work_is_cancelled_with_its_last_caller() -> None:
    begun, stopped = asyncio.Event(), asyncio.Event()

    async def work() -> int:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return 0

    shared = SharedTasks[int]()
    first, second = (asyncio.ensure_future(shared.run("key", work)) for _ in range(2))
    await begun.wait()
    first.cancel()
    await asyncio.wait({first})
    assert not stopped.is_set()
    second.cancel()
    await asyncio.wait({second})
    assert stopped.is_set()


async def test_own_threads_are_not_used_up_by_work_that_blocks() -> None:
    go_on = threading.Event()
    blocked = [asyncio.ensure_future(in_own_thread(go_on.wait)) for _ in range(40)]
    assert await in_own_thread(lambda: 5) == 5
    assert await asyncio.to_thread(lambda: 6) == 6
    go_on.set()
    assert await asyncio.gather(*blocked) == [True] * 40


async def test_error_in_an_own_thread_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        await in_own_thread(lambda: 1 // 0)


async def test_cancelled_caller_does_not_wait_for_its_own_thread() -> None:
    go_on = threading.Event()
    waiting = asyncio.ensure_future(in_own_thread(go_on.wait))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    go_on.set()
    await in_own_thread(lambda: None)  # the late result is dropped
