# SPDX-License-Identifier: Apache-2.0
"""Work that a cancellation must not cut short, that several callers share, or that ends with its caller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable, Iterable
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from threading import Thread
from typing import Any, Generic, TypeVar

T = TypeVar("T")
V = TypeVar("V")


async def _stop(task: asyncio.Task[T]) -> None:
    task.cancel()
    # Not `await task`: that would raise the task's cancellation as if it were the caller's.
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # retrieved, or asyncio logs it as never retrieved


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Task[T]]:
    """Run `work` beside the context's body, which may await the task; it ends with the context at the latest."""
    task = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        await _stop(task)


@dataclass
class _Shared(Generic[T]):
    task: asyncio.Task[T]
    waiters: int = 0


class SharedTasks(Generic[T]):
    """Work by key, run once for all concurrent callers.

    It is cancelled when no caller waits for it any more.
    """

    def __init__(self) -> None:
        self._running: dict[Hashable, _Shared[T]] = {}

    async def run(self, key: Hashable, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result, or the error, of the work under `key`; started when there is none."""
        shared = self._running.get(key)
        if shared is None:
            shared = self._running[key] = _Shared(asyncio.ensure_future(start()))
        shared.waiters += 1
        try:
            # The caller's own cancellation must not reach the work of the others.
            return await asyncio.shield(shared.task)
        finally:
            shared.waiters -= 1
            if shared.waiters == 0:
                self._running.pop(key, None)
                await _stop(shared.task)

    async def close(self) -> None:
        """Cancel all work; its callers are cancelled too."""
        for shared in tuple(self._running.values()):
            await _stop(shared.task)


async def all_of(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all, in their order; the first failure ends the others and is raised, not in a group."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except BaseExceptionGroup as failures:
        # The group itself is of no use to callers, which handle errors by their kinds.
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


async def ended(task: asyncio.Task[T]) -> asyncio.CancelledError | None:
    """Wait until `task` has ended, with a result or an error, however often the caller is cancelled.

    Returns the cancellation, if there was one, for the caller to raise after it has handled the task's result.
    """
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            # Unlike `await task`, it does not pass the caller's cancellation on to the task.
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    return cancelled


async def finish(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end even when the caller is cancelled; the cancellation is raised after it.

    For what cannot be stopped anyway, such as a worker thread, and for programs that must not be left half way.
    """
    task = asyncio.ensure_future(work)
    cancelled = await ended(task)
    if cancelled is None:
        return task.result()
    if not task.cancelled():
        task.exception()  # retrieved; the caller gets the cancellation
    raise cancelled


async def in_own_thread(work: Callable[[], T]) -> T:
    """The result of `work`, which uses a client's path and so may block for ever, in a thread of its own.

    The event loop's own threads are few: those that wait for a dead NFS server would stop all other file work, and
    the daemon's end. If the caller is cancelled, the thread goes on, and its result is dropped.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            settle = partial(_settle, outcome.set_result, outcome, work())
        except BaseException as error:
            settle = partial(_settle, outcome.set_exception, outcome, error)
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle)

    Thread(target=run, daemon=True).start()
    return await outcome


def _settle(setter: Callable[[V], None], outcome: asyncio.Future[T], value: V) -> None:
    if not outcome.done():
        setter(value)


_call_end: ContextVar[Callable[[Callable[[], None]], None]] = ContextVar("call_end")


def serving(at_end: Callable[[Callable[[], None]], None]) -> None:
    """Say that this task serves a client's call; `at_end` registers what is to run once its answer was sent."""
    _call_end.set(at_end)


def when_answered(callback: Callable[[], None]) -> None:
    """Run `callback` once the client has the answer of the call that this task serves; now if it serves none."""
    register = _call_end.get(None)
    if register is None:
        callback()
    else:
        register(callback)
