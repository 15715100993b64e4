# SPDX-License-Identifier: Apache-2.0
"""What an event costs the daemon for each client of GetContainerEvents."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import grpc

from pvecri.cri.proto import cri_pb2 as pb
from pvecri_bench import cpu
from pvecri_bench.client import MAX_ANSWER

CLIENTS = 10
TIMEOUT = 60.0
PATH = "/runtime.v1.RuntimeService/GetContainerEvents"


def event_cpu(endpoint: str, pid: int, change: Callable[[], object], events: int, rounds: int) -> float:
    """Milliseconds of the daemon's CPU for one event to one client.

    `change` causes `events` events. It is called `rounds` times without clients, and as often with CLIENTS.
    """
    without = _cpu(pid, change, rounds)
    with _subscribed(endpoint) as counts:
        while not all(counts):  # until the daemon has subscribed all
            change()
            time.sleep(0.2)
        wanted = [count + events * rounds for count in counts]
        used = _cpu(pid, change, rounds)
        deadline = time.monotonic() + TIMEOUT
        before = cpu.own_ms(pid)
        while counts != wanted:
            if time.monotonic() > deadline:
                raise TimeoutError(f"events that clients got: {counts}, expected: {wanted}")
            time.sleep(0.005)
        used += cpu.own_ms(pid) - before
    return (used - without) / (CLIENTS * events * rounds)


def _cpu(pid: int, change: Callable[[], object], rounds: int) -> float:
    before = cpu.own_ms(pid)
    for _ in range(rounds):
        change()
    return cpu.own_ms(pid) - before


@contextmanager
def _subscribed(endpoint: str) -> Iterator[list[int]]:
    """The number of events that each client has got so far."""
    counts = [0] * CLIENTS
    options = [("grpc.max_receive_message_length", MAX_ANSWER)]
    with grpc.insecure_channel(endpoint, options) as channel:
        calls = []
        request = pb.GetEventsRequest().SerializeToString()
        subscribe: Any = channel.unary_stream(PATH)
        for number in range(CLIENTS):
            call = subscribe(request)
            calls.append(call)
            threading.Thread(target=_count, args=(call, counts, number), daemon=True).start()
        try:
            yield counts
        finally:
            for call in calls:
                call.cancel()


def _count(call: Any, counts: list[int], number: int) -> None:
    with suppress(grpc.RpcError):
        for _ in call:
            counts[number] += 1
