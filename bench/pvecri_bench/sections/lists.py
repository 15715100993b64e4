# SPDX-License-Identifier: Apache-2.0
"""Lists, and the daemons' memory, while many containers run."""

from __future__ import annotations

from pvecri_bench.client import Timed, WrongAnswerError
from pvecri_bench.memory import resident_mib
from pvecri_bench.session import Column, Session, end_pod, say

PODS = 10


def measure(session: Session, images: dict[str, str], containers: int, rounds: int) -> None:
    """Start `containers` containers in ten pods (fewer for fewer) at each runtime, ask for lists, remove all."""
    say(f"lists: starting {containers} containers at each runtime")
    _start(session, images, containers)

    def running(column: Column) -> Timed[int]:
        return _checked(column, column.client.running(session.labels), containers)

    def stats(column: Column) -> Timed[int]:
        return _checked(column, column.client.list_stats(session.labels), containers)

    say("lists")
    session.turn(f"ListContainers, {containers} run", running, rounds * 5)
    session.turn(
        f"ListPodSandbox, {containers} containers run",
        lambda column: column.client.pods(session.labels),
        rounds * 5,
    )
    session.turn(f"ListContainerStats, {containers} run", stats, rounds)
    for column in session.columns:
        session.figures.add(
            f"daemon RSS, {containers} containers", "MiB", column.name, resident_mib(column.daemon)
        )
    for column in session.columns:
        for pod in column.client.pods(session.labels).value:
            end_pod(column, pod)


def _start(session: Session, images: dict[str, str], containers: int) -> None:
    pods = min(PODS, containers)
    for number in range(pods):
        share = (containers - number + pods - 1) // pods
        for column in session.order():
            session.start_pod(column, f"list-{number}", share, images[column.name])


def _checked(column: Column, answer: Timed[int], expected: int) -> Timed[int]:
    if answer.value != expected:
        raise WrongAnswerError(f"{column.name} lists {answer.value} containers; {expected} run")
    return answer
