# SPDX-License-Identifier: Apache-2.0
"""What pods cost at the Proxmox API: counts, which hold for a real node as they do for the embedded one."""

from __future__ import annotations

import msgspec

from pvecri_bench.ledger import Account, Ledger
from pvecri_bench.session import Column, Session, end_pod, say

LIVES = 10


class ApiCosts(msgspec.Struct, frozen=True):
    """Requests and tasks, each an average a life. `requests` are by `METHOD /path`, `tasks` by type.

    `waiting` are those of the requests that ask for a task's state: how many there are depends on how long tasks
    take.
    """

    changing: float
    reading: float
    waiting: float
    requests: dict[str, float]
    tasks: dict[str, float]


class Costs(msgspec.Struct, frozen=True):
    """A pod with one container, from RunPodSandbox to RemovePodSandbox, and a container more in a pod."""

    pod: ApiCosts
    container: ApiCosts


def measure(session: Session, column: Column, ledger: Ledger, image: str) -> Costs:
    """Let pods, and then containers of one pod, live one after the other, and read the node's books."""
    say("calls to the Proxmox API")
    before = ledger.now()
    for number in range(LIVES):
        end_pod(column, session.start_pod(column, f"cost-{number}", 1, image).id)
    ledger.wait_for_removals()
    pods = ledger.since(before)
    pod = session.start_pod(column, "cost", 1, image)
    before = ledger.now()
    for number in range(LIVES):
        spec = session.container_config(f"more-{number}", image)
        container = column.client.create(pod.id, spec, pod.config).value
        column.client.start(container)
        column.client.stop(container)
        column.client.remove(container)
    containers = ledger.since(before)
    end_pod(column, pod.id)
    return Costs(average(pods, LIVES), average(containers, LIVES))


def average(account: Account, lives: int) -> ApiCosts:
    """The costs of one life of several. Pure."""
    waiting = sum(number for name, number in account.requests.items() if name.endswith("/tasks/{upid}/status"))
    return ApiCosts(
        changing=account.changing / lives,
        reading=(account.reading - waiting) / lives,
        waiting=waiting / lives,
        requests={name: number / lives for name, number in sorted(account.requests.items())},
        tasks={name: number / lives for name, number in sorted(account.tasks.items())},
    )
