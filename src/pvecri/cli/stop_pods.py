# SPDX-License-Identifier: Apache-2.0
"""`pvecri stop-pods`: ends all pods of the node side by side, each by its own grace period (decision 0090)."""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING

from pvecri.config.settings import Config
from pvecri.errors import PvecriError, Unavailable
from pvecri.linux import single_instance
from pvecri.pods.node_shutdown import NodeShutdown
from pvecri.pods.sandbox.shutdown import grace_period

if TYPE_CHECKING:
    from pvecri.cri.client import RunningPod, RuntimeClient

TIMEOUT = 180.0
"""Seconds; as Proxmox has for the shutdown of a guest."""


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "stop-pods", help="stop all pods of the node, each by its grace period; exit status 1 if one is left"
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=TIMEOUT,
        metavar="SECONDS",
        help="longest grace period: then containers are killed (default: %(default)g)",
    )
    parser.add_argument(
        "--at-shutdown",
        action="store_true",
        help="for pvecri-shutdown.service: do nothing unless systemd is shutting the node down, "
        "and let the daemon start nothing new",
    )


def run(config: Config, options: argparse.Namespace) -> int:
    """Run the command; returns the exit status. Unavailable if no daemon runs."""
    if options.at_shutdown:
        if not _shutting_down():
            print("the node is not shutting down: pods keep running")
            return 0
        NodeShutdown(config.runtime.run_dir).announce()
    path = config.runtime.socket
    if not single_instance.listens(path):
        raise Unavailable(
            f"no daemon serves on {path} (runtime.socket): the CTs of pods end by Proxmox's shutdown"
        )
    return asyncio.run(_stop_all(config, options.timeout))


def _shutting_down() -> bool:
    """Whether systemd is stopping all units, for a reboot or a power-off."""
    command = ["systemctl", "is-system-running"]
    try:
        # The exit status is not 0 unless the state is `running`.
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() == "stopping"
    except FileNotFoundError:
        return False


async def _stop_all(config: Config, timeout: float) -> int:
    from pvecri.cri import client  # only here: the daemon, which is a command too, has no use for the stubs

    outcomes: dict[str, bool] = {}
    async with client.runtime_client(config.runtime.socket) as runtime:
        # Again, because a pod may have been in the middle of its start.
        while pods := [pod for pod in await runtime.running_pods() if pod.id not in outcomes]:
            ended = await asyncio.gather(*(_stop(runtime, pod, timeout) for pod in pods))
            outcomes |= zip((pod.id for pod in pods), ended, strict=True)
    print(f"{sum(outcomes.values())} of {len(outcomes)} pods stopped")
    return 0 if all(outcomes.values()) else 1


async def _stop(runtime: RuntimeClient, pod: RunningPod, timeout: float) -> bool:
    """Stop a pod's containers and then the pod; False if that fails, which is reported."""
    stops = (
        runtime.stop_container(container, min(grace_period(annotations), timeout))
        for container, annotations in pod.containers.items()
    )
    failures = [each for each in await asyncio.gather(*stops, return_exceptions=True) if each is not None]
    try:
        # It kills what has not ended.
        await runtime.stop_pod(pod.id)
    except PvecriError as error:
        failures.append(error)
    for failure in failures:
        print(f"pvecri: pod {pod.namespace}/{pod.name}: {failure}", file=sys.stderr)
    return not failures
