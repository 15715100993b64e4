# SPDX-License-Identifier: Apache-2.0
"""The daemon's start after a crash, beside the pods that it finds."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass

from trial.plan import Plan
from trial.programs import START_TIMEOUT, running
from trial.stack import accepts

from pvecri_bench import cpu
from pvecri_bench.client import Client

POLL = 0.005


@dataclass(frozen=True)
class Restart:
    """From the start of a new process until it has listed its pods: seconds, and milliseconds of its CPU."""

    seconds: float
    cpu: float


def restart(plan: Plan, pods: int, stack: ExitStack) -> Restart:
    """Kill the daemon, and start another one that runs until `stack` closes.

    RuntimeError if it lists another number of pods, TimeoutError if it does not listen.
    """
    endpoint = f"unix://{plan.socket}"
    with Client(endpoint) as client:
        _kill(client.daemon_pid())
    began = time.monotonic()
    command = [sys.executable, "-m", "pvecri", "--config", str(plan.config), "serve"]
    process = stack.enter_context(running(command, plan.state / "daemon.log"))
    # Not by gRPC: a connection to the crashed daemon's socket is refused, and tried again after one second, then
    # 1.6 and 2.6 more. A kubelet's client has pauses of its own.
    while not accepts(plan.socket):
        if process.poll() is not None or time.monotonic() - began > START_TIMEOUT:
            raise TimeoutError(f"the daemon does not listen; its log is {plan.state / 'daemon.log'}")
        time.sleep(POLL)
    with Client(endpoint) as client:
        found = len(client.pods({}).value)
        result = Restart(time.monotonic() - began, cpu.own_ms(client.daemon_pid()))
    if found != pods:
        raise RuntimeError(f"{found} of {pods} pods after the daemon's restart")
    return result


def _kill(pid: int) -> None:
    fd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        select.select([fd], [], [])
    finally:
        os.close(fd)
