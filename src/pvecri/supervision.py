# SPDX-License-Identifier: Apache-2.0
"""Background work: tasks that no caller awaits, so their exceptions reach nobody.

One rule, everywhere (docs/decisions/0068): a PvecriError is an answer, which somebody foresaw and worded; any
other exception is a fault, of the machine or of this program. An answer takes one line of the log at most, and
is a warning only the first time that it comes: Proxmox may be away for hours. A fault is logged with its
traceback. Neither ends background work: it is started again after a growing pause.

Each run of a step is an operation of its own, with an ID (observability/correlation.py).

A task that its creator awaits, or that an `asyncio.TaskGroup` does, needs no supervisor: its exception reaches a
caller.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Final

from pvecri.backoff import Backoff
from pvecri.errors import InternalError, PvecriError
from pvecri.observability import correlation, metrics

log = logging.getLogger(__name__)

RESTART: Final = Backoff(first=1.0, maximum=60.0)
"""Seconds before background work that failed is started again."""

KEEPS_FAILING: Final = 3
"""Failures in a row after which work is shown as failing."""

_TASK: Final = re.compile(r" \(task UPID:[^)]*\)")
"""A task of Proxmox that failed; each try has its own."""

_ANSWERS_MAX: Final = 1000
"""Answers that are remembered; the oldest is forgotten first."""

_answers: Final[OrderedDict[str, str]] = OrderedDict()
"""The last answer to each piece of work that has not succeeded since."""

Step = Callable[[], Awaitable[object]]


@dataclass(frozen=True)
class Failing:
    """Background work that has failed `failures` times in a row; `error` is the last one.

    `subject` is what it works for, such as a container's id, if there are several of its kind.
    """

    work: str
    subject: str
    failures: int
    error: str

    def __str__(self) -> str:
        return f"{_name(self.work, self.subject)} failed {self.failures} times in a row: {self.error}"


@dataclass
class _Record:
    """The failures of one piece of supervised work since its last success."""

    work: str
    subject: str
    failures: int = 0
    error: str = ""
    delays: Iterator[float] = field(default_factory=RESTART.delays)


class Supervisor:
    """Runs the background work of one component, from its first piece until `close`.

    `work` names a kind of work in few words; it labels metrics, so it has no ids. `subject` distinguishes
    several pieces of a kind in the log.
    """

    def __init__(
        self, restart: Backoff = RESTART, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    ) -> None:
        self._restart = restart
        self._sleep = sleep
        self._tasks: dict[asyncio.Task[None], _Record] = {}

    def until_done(self, work: str, step: Step, subject: str = "") -> asyncio.Task[None]:
        """Run `step` until it returns; each time that it raises, again after a growing pause.

        For what must happen once, such as recording that a container has ended. `step` is repeatable.
        """
        record = _Record(work, subject, delays=self._restart.delays())
        return self._start(self._until_done(step, record), record)

    def repeat(self, work: str, step: Step, between: Step) -> asyncio.Task[None]:
        """Run `step`, then `between` (a sleep, or the wait for an event), over and over until `close`.

        A `step` that raises is run again after a pause that grows until one returns.
        """
        record = _Record(work, "", delays=self._restart.delays())
        return self._start(self._repeat(step, between, record), record)

    def once(self, work: str, step: Step, subject: str = "") -> asyncio.Task[None]:
        """Run `step`, and report what it raises: for work that something else repeats or makes superfluous.

        The task itself never raises.
        """
        return self._start(self._once(step, work, subject), _Record(work, subject))

    @property
    def failing(self) -> list[Failing]:
        """The work that keeps failing: its last tries, KEEPS_FAILING or more, all failed."""
        return [
            Failing(each.work, each.subject, each.failures, each.error)
            for each in self._tasks.values()
            if each.failures >= KEEPS_FAILING
        ]

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        """The tasks that run now."""
        return list(self._tasks)

    async def close(self) -> None:
        """Cancel all work and wait until it has ended. Idempotent."""
        tasks = self.tasks
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _start(self, running: Awaitable[None], record: _Record) -> asyncio.Task[None]:
        assert asyncio.iscoroutine(running)
        task: asyncio.Task[None] = asyncio.create_task(running, name=_name(record.work, record.subject))
        self._tasks[task] = record  # asyncio itself keeps only a weak reference to a task
        task.add_done_callback(lambda ended: self._tasks.pop(ended, None))
        return task

    async def _repeat(self, step: Step, between: Step, record: _Record) -> None:
        while True:
            await self._until_done(step, record)
            await between()

    async def _until_done(self, step: Step, record: _Record) -> None:
        while True:
            with _operation(record.work, record.subject):
                try:
                    await step()
                except Exception as error:  # also a fault: work that ends here would never be done again
                    await self._pause_after(error, record)
                else:
                    break
        _answers.pop(_name(record.work, record.subject), None)
        if record.failures:
            log.info("%s succeeded after %d failures", _name(record.work, record.subject), record.failures)
            # The next failure is the first again, with the short pause.
            record.failures, record.error, record.delays = 0, "", self._restart.delays()

    async def _pause_after(self, error: Exception, record: _Record) -> None:
        record.failures += 1
        record.error = describe(error)
        delay = next(record.delays)
        report(error, record.work, _name(record.work, record.subject), f" (again in {delay:g} s)")
        await self._sleep(delay)

    async def _once(self, step: Step, work: str, subject: str) -> None:
        with _operation(work, subject):
            await attempt(step, work, _name(work, subject))


def _operation(work: str, subject: str) -> AbstractContextManager[correlation.Operation]:
    """A run of background work, caused by the operation that the task was made in."""
    return correlation.operation(_name(work, subject), caused_by=correlation.cause())


def _name(work: str, subject: str) -> str:
    return f"{work} of {subject}" if subject else work


def describe(error: BaseException) -> str:
    """An error in one line: an answer by its message, a fault with its type."""
    return str(error) if isinstance(error, PvecriError) else f"{type(error).__name__}: {error}"


def report(error: Exception, work: str, action: str, remark: str = "") -> None:
    """Log and count an error that no caller gets to see: an answer in one line, a fault with its traceback.

    `work` is the metric's label, `action` names in the log what failed. The same answer again is logged at the
    level debug until the action has succeeded.
    """
    metrics.BACKGROUND_FAILURES.labels(work).inc()
    if isinstance(error, PvecriError):
        log.log(logging.WARNING if _is_new(action, error) else logging.DEBUG, "%s%s: %s", action, remark, error)
    else:
        log.error("%s%s: %s", action, remark, describe(error), exc_info=error)


def _is_new(action: str, answer: PvecriError) -> bool:
    """Whether this is another answer than the last."""
    # Otherwise each retry of a Proxmox task would count as another answer and be a warning.
    text = _TASK.sub("", str(answer))
    if _answers.get(action) == text:
        return False
    _answers[action] = text
    _answers.move_to_end(action)
    if len(_answers) > _ANSWERS_MAX:
        _answers.popitem(last=False)
    return True


async def attempt(step: Step, work: str, action: str) -> Exception | None:
    """Run one step of several, none of which may prevent the others; report what it raises.

    Returns the error. A cancellation is not an error and is raised.
    """
    try:
        await step()
    except Exception as error:
        report(error, work, action)
        return error
    _answers.pop(action, None)
    return None


class Incomplete(InternalError):
    """Steps of a piece of work failed; each was reported, and the last is quoted."""

    def __init__(self, work: str, failures: int, steps: int, last: Exception) -> None:
        super().__init__(f"{work}: {failures} of {steps} steps failed, the last with: {describe(last)}")
        self.failures = failures


async def attempt_each(work: str, steps: Sequence[tuple[str, Step]]) -> None:
    """`attempt` steps, named by what each does, one after the other; Incomplete in the end if any failed."""
    outcomes = [await attempt(step, work, action) for action, step in steps]
    failures = [each for each in outcomes if each is not None]
    if failures:
        raise Incomplete(work, len(failures), len(steps), failures[-1])


async def all_to_end(work: str, *steps: Step) -> None:
    """Run all side by side to their ends, then raise the first error in their order; the others are reported."""
    outcomes = await asyncio.gather(*(step() for step in steps), return_exceptions=True)
    errors = [each for each in outcomes if isinstance(each, BaseException)]
    for error in errors[1:]:
        # A cancellation is not an error to report.
        if isinstance(error, Exception):
            report(error, work, work)
    if errors:
        raise errors[0]
