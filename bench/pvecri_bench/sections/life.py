# SPDX-License-Identifier: Apache-2.0
"""The cheap calls, and every call in the life of one pod with one container, with nothing else going on."""

from __future__ import annotations

from pvecri_bench.client import Timed
from pvecri_bench.memory import resident_mib
from pvecri_bench.session import Column, Pod, Session, end_pod, say

STATUS_CALLS = 5
"""Of each kind, a life."""


def warm_up(session: Session) -> dict[str, str]:
    """Pull what pods run and let one pod live, unmeasured; the image's id by column, and what idle daemons use."""
    images = {}
    for column in session.columns:
        images[column.name] = column.client.pull(session.images.base).value
        pod = session.start_pod(column, "warm-up", 1, images[column.name])
        end_pod(column, pod.id)
        session.figures.add("daemon RSS, idle", "MiB", column.name, resident_mib(column.daemon))
    return images


def measure_reads(session: Session, rounds: int) -> None:
    """Version and Status: what a call costs that does next to nothing."""
    session.turn("Version", lambda column: column.client.version(), rounds)
    session.turn("Status", lambda column: column.client.status(), rounds)


def measure_lives(session: Session, images: dict[str, str], rounds: int) -> None:
    """One pod after the other, at each runtime; `images` as `warm_up` has them."""
    for number in range(rounds):
        if number % 10 == 0:
            say(f"pods that live alone: {number} of {rounds}")
        _measure_life(session, images, f"life-{number}")


def _measure_life(session: Session, images: dict[str, str], name: str) -> None:
    pods = session.turn("RunPodSandbox", lambda column: _run_pod(session, column, name))

    def create(column: Column) -> Timed[str]:
        pod, config = pods[column.name], session.container_config("c", images[column.name])
        return column.client.create(pod.id, config, pod.config)

    containers = session.turn("CreateContainer", create)
    session.turn("StartContainer", lambda column: column.client.start(containers[column.name]))
    session.turn("ExecSync true", lambda column: column.client.execute(containers[column.name], ["true"]))
    session.turn(
        "ContainerStatus", lambda column: column.client.container_status(containers[column.name]), STATUS_CALLS
    )
    session.turn("PodSandboxStatus", lambda column: column.client.pod_status(pods[column.name].id), STATUS_CALLS)
    session.turn("ContainerStats", lambda column: column.client.container_stats(containers[column.name]))
    session.turn("StopContainer, no grace", lambda column: column.client.stop(containers[column.name]))
    session.turn("RemoveContainer", lambda column: column.client.remove(containers[column.name]))
    session.turn("StopPodSandbox", lambda column: column.client.stop_pod(pods[column.name].id))
    session.turn("RemovePodSandbox", lambda column: _remove_pod(column, pods[column.name]))


def _remove_pod(column: Column, pod: Pod) -> Timed[None]:
    answer = column.client.remove_pod(pod.id)
    column.client.wait_for_removals()  # not measured: the next runtime's call is not to share the machine with it
    return answer


def _run_pod(session: Session, column: Column, name: str) -> Timed[Pod]:
    config = session.pod_config(name)
    answer = column.client.run_pod(config)
    return answer.instead(Pod(answer.value, config))
