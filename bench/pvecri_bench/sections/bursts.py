# SPDX-License-Identifier: Apache-2.0
"""Many pods at once, as after a node's start: how many a second come up and go, and what they cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pvecri_bench.client import WrongAnswerError
from pvecri_bench.memory import helpers, resident_mib
from pvecri_bench.session import Column, Session, end_pod, say

T = TypeVar("T")
R = TypeVar("R")


def measure(
    session: Session, images: dict[str, str], sizes: Iterable[int], parallel: Sequence[int], times: int
) -> None:
    """Start pods of one container at each runtime in turn, while the others are idle, and remove them.

    So for each of the numbers of pods (`sizes`), each of the numbers of clients (`parallel`), `times` times.
    """
    for pods in sizes:
        for clients in parallel:
            say(f"{pods} pods, {clients} at once")
            for _ in range(times):
                for column in session.order():
                    _measure_burst(session, column, images[column.name], pods, clients)


def _measure_burst(session: Session, column: Column, image: str, pods: int, parallel: int) -> None:
    name = f"{pods} pods, {parallel} at once"

    def start(number: int) -> str:
        return session.start_pod(column, f"burst-{number}", 1, image).id

    seconds, started = _at_once(parallel, start, range(pods))
    session.figures.add(f"start of {name}", "pods/s", column.name, pods / seconds)
    running = column.client.running(session.labels).value
    if running != pods:
        raise WrongAnswerError(f"{column.name}: {running} of {pods} containers run")
    _measure_memory(session, column, pods)
    seconds, _ = _at_once(parallel, lambda pod: end_pod(column, pod), started)
    session.figures.add(f"end of {name}", "pods/s", column.name, pods / seconds)
    column.client.wait_for_removals()


def _measure_memory(session: Session, column: Column, pods: int) -> None:
    session.figures.add(f"daemon RSS, {pods} pods", "MiB", column.name, resident_mib(column.daemon))
    if column.helpers is None:
        return
    kept = helpers(column.helpers)
    session.figures.add(f"helpers a pod, of {pods}", "processes", column.name, kept.processes / pods)
    session.figures.add(f"helpers' PSS a pod, of {pods}", "MiB", column.name, kept.pss_mib / pods)


def _at_once(parallel: int, action: Callable[[T], R], things: Iterable[T]) -> tuple[float, list[R]]:
    """Do it to all, so many at a time; the seconds it took, and what came of it. The first error ends it."""
    pool = ThreadPoolExecutor(parallel)
    began = time.perf_counter()
    try:
        results = list(pool.map(action, things))
    finally:
        # What is under way comes to its end, so that it is known what is there to be removed.
        pool.shutdown(cancel_futures=True)
    return time.perf_counter() - began, results
