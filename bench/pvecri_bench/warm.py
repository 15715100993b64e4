# SPDX-License-Identifier: Apache-2.0
"""`python -m pvecri_bench.warm`: warm CTs beside new ones, at the embedded node's speed and at a Proxmox node's.

Two daemons, each with an embedded node, differ in proxmox.warm_pods alone and are called in turns. Then one runs
and removes many pods while it is killed again and again.
"""

from __future__ import annotations

import argparse
import os
import random
import secrets
import signal
import socket
import sqlite3
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
from trial.plan import Plan, make_plan, vmid_cgroups
from trial.stack import end_on_signals, running_daemon

from pvecri.cri.proto import cri_pb2 as pb
from pvecri.linux import cgroups
from pvecri_bench import machine, ours, removal
from pvecri_bench.client import Client
from pvecri_bench.memory import helpers
from pvecri_bench.session import say

TASK_SHARE = 2.6
"""A create and a start, in units of a create (pvecri_embedded.times.RATIOS)."""

RETRY_INTERVAL = 0.05
TIMEOUT = 120.0


@dataclass(frozen=True)
class Side:
    """A daemon with or without warm CTs."""

    plan: Plan
    client: Client
    label: str

    def pod_config(self, name: str) -> pb.PodSandboxConfig:
        """A pod with a network of its own."""
        return pb.PodSandboxConfig(
            metadata=pb.PodSandboxMetadata(name=name, namespace="bench", uid=f"{self.label}-{name}"),
            hostname=name,
            log_directory=str(self.plan.state),
            labels={"pvecri-bench": self.label, "pod": name},
        )

    def run(self, name: str) -> tuple[str, float]:
        """A new pod, and the milliseconds of RunPodSandbox."""
        answer = self.client.run_pod(self.pod_config(name))
        return answer.value, answer.milliseconds

    def end(self, pod: str) -> None:
        """Stop and remove a pod."""
        self.client.stop_pod(pod)
        self.client.remove_pod(pod)

    def rows(self) -> tuple[int, int]:
        """The rows of the store, and how many of them are CTs that a pod can claim."""
        query = (
            "SELECT count(*), count(json_extract(CAST(value AS TEXT), '$.warm.digest')) FROM sandboxes "
            "WHERE json_extract(CAST(value AS TEXT), '$.phase') != 'removing'"
        )
        with closing(sqlite3.connect(self.plan.state / "pvecri/pods.db")) as database:
            return tuple(database.execute(query).fetchone())

    def wait_for_warm(self, count: int) -> None:
        """Until so many CTs wait for a pod. TimeoutError."""
        wait_until(lambda: self.rows()[1] >= count, f"{count} CTs wait")

    def kill(self) -> None:
        """End the daemon without a warning, as a crash does."""
        os.kill(self.client.daemon_pid(), signal.SIGKILL)
        wait_until(lambda: not self._listens(), "the daemon has ended")

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.plan.socket)) == 0

    def cts(self) -> int:
        """The CTs of the node."""
        return len(list(self.plan.node_state.glob("pve/nodes/*/lxc/*.conf")))


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """TimeoutError if it takes too long."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited in vain until {what}")
        time.sleep(RETRY_INTERVAL)


@contextmanager
def running_side(home: Path, warm: int, task_seconds: float) -> Iterator[Side]:
    """A node whose create takes `task_seconds` more, and a daemon with at most `warm` CTs that wait."""
    plan = make_plan(home)
    options = ["--task-times", f"{task_seconds:.3f}"] if task_seconds else []
    with ExitStack() as stack:
        stack.callback(remove, plan)
        settings = f"\n[proxmox.warm_pods]\nunprivileged = {warm}\n"
        stack.enter_context(ours.running_pvecri(plan, options, settings))
        yield Side(plan, stack.enter_context(Client(f"unix://{plan.socket}")), secrets.token_hex(3))


def remove(plan: Plan) -> None:
    """All that is left: the CTs that wait as well. RuntimeError if something stays."""
    removal.remove_installation(plan, f"/{plan.network}-bench", ours.helpers(plan))
    trees = cgroups.detect()
    for vmid in {int(path.name) for path in vmid_cgroups()} & {*plan.vmids}:
        for group in (f"/lxc/{vmid}", f"/lxc.monitor/{vmid}"):
            trees.remove(group)
    if left := removal.left_behind(plan):
        raise RuntimeError("left behind: " + ", ".join(left))


def measure(home: Path, options: argparse.Namespace, task_seconds: float) -> tuple[float, float]:
    """Print what RunPodSandbox takes; the medians without and with a warm CT, in milliseconds."""
    with (
        running_side(home / "new", 0, task_seconds) as new,
        running_side(home / "warm", options.warm, task_seconds) as warm,
    ):
        times: dict[Side, list[float]] = {new: [], warm: []}
        warm.end(warm.run("first")[0])
        for number in range(options.rounds):
            warm.wait_for_warm(1)
            for side in (new, warm) if number % 2 else (warm, new):
                pod, milliseconds = side.run(f"pod-{number}")
                times[side].append(milliseconds)
                side.end(pod)
        medians = statistics.median(times[new]), statistics.median(times[warm])
        report = "RunPodSandbox: {:.0f} ms with a new CT, {:.0f} ms with a warm one, ratio {:.3f}"
        print(report.format(*medians, medians[1] / medians[0]))
        measure_burst(new, warm, options)
        wait_until(lambda: warm.rows() == (options.warm, options.warm), "all CTs wait and no pod is left")
        kept = helpers(ours.helpers(warm.plan))
        print(f"memory: {kept.pss_mib / options.warm:.2f} MiB (PSS) a waiting CT, in {kept.processes} processes")
    return medians


def measure_burst(new: Side, warm: Side, options: argparse.Namespace) -> None:
    """Print how long it takes until as many pods as asked for run that are asked for at once."""
    wait_until(lambda: warm.rows()[1] == options.warm, "all CTs wait")
    for side, name in ((new, "new CTs"), (warm, f"{options.warm} warm CTs")):
        with ThreadPoolExecutor(options.burst) as threads:
            began = time.perf_counter()
            runs = list(threads.map(side.run, (f"burst-{number}" for number in range(options.burst))))
            seconds = time.perf_counter() - began
            times = sorted(milliseconds for _, milliseconds in runs)
            list(threads.map(side.end, (pod for pod, _ in runs)))
        print(
            f"{options.burst} pods at once, {name}: {seconds:.1f} s; each {times[0]:.0f} to {times[-1]:.0f} ms, "
            f"median {statistics.median(times):.0f}"
        )


# -- a daemon that is killed --------------------------------------------------------------------------------------


def repeated(call: Callable[[], str | None]) -> str:
    """What the call returns in the end, as a kubelet gets it from a daemon that restarts. TimeoutError."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        with suppress(grpc.RpcError):
            if (answer := call()) is not None:
                return answer
        time.sleep(RETRY_INTERVAL)
    raise TimeoutError("a call did not succeed")


def run_again(side: Side, name: str) -> str:
    """A pod's id; if the answer to its RunPodSandbox was lost, as the list of pods has it."""

    def once() -> str | None:
        found = side.client.pods({"pvecri-bench": side.label, "pod": name}).value
        return found[0] if found else side.run(name)[0]

    return repeated(once)


def end_again(side: Side, pod: str) -> str:
    """Remove a pod."""

    def once() -> str:
        side.end(pod)
        return pod

    return repeated(once)


def run_with_kills(
    side: Side, threads: ThreadPoolExecutor, work: Sequence[Callable[[], str]], kills: int
) -> list[str]:
    """Do all the work while the daemon is killed and started again; what came of it."""
    chance = random.Random(len(work))
    running = [threads.submit(each) for each in work]
    for _ in range(kills):
        with running_daemon(side.plan):
            time.sleep(chance.uniform(0.5, 2.0))
            side.kill()
    with running_daemon(side.plan):
        return [each.result() for each in running]


def measure_kills(home: Path, options: argparse.Namespace) -> None:
    """Pods up and down with a daemon that is killed meanwhile; RuntimeError if one or a CT is lost or left."""
    with running_side(home / "killed", options.warm, 0) as side, ThreadPoolExecutor(10) as threads:
        side.kill()
        up: list[Callable[[], str]] = [_bound(run_again, side, f"pod-{each}") for each in range(options.pods)]
        pods = run_with_kills(side, threads, up, options.kills // 2)
        if len(set(pods)) != options.pods:
            raise RuntimeError(f"{len(set(pods))} of {options.pods} pods")
        down: list[Callable[[], str]] = [_bound(end_again, side, pod) for pod in pods]
        run_with_kills(side, threads, down, options.kills - options.kills // 2)
        with running_daemon(side.plan):
            side.wait_for_warm(1)
            wait_until(lambda: side.cts() == side.rows()[0] == side.rows()[1], "only waiting CTs are left")
        print(f"{options.pods} pods up and down, daemon killed {options.kills} times: none lost, no CT left")


def _bound(action: Callable[[Side, str], str], side: Side, argument: str) -> Callable[[], str]:
    return lambda: action(side, argument)


def main() -> int:
    """The exit status: 0, or 1 if something failed. A slow number is no failure."""
    parser = argparse.ArgumentParser(prog="bench/warm", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="single pods a side (default: 20)")
    parser.add_argument("--warm", type=int, default=10, help="proxmox.warm_pods (default: 10)")
    parser.add_argument("--burst", type=int, default=50, help="pods asked for at once (default: 50)")
    parser.add_argument("--factor", type=float, default=20, help="slowness of a Proxmox node (default: 20)")
    parser.add_argument("--pods", type=int, default=110, help="pods under a daemon that is killed (default: 110)")
    parser.add_argument("--kills", type=int, default=10, help="how often it is killed (default: 10)")
    options = parser.parse_args()
    end_on_signals()
    home = Path(f"/var/lib/pvecri-bench-{secrets.token_hex(3)}")
    print(machine.describe().line())
    try:
        say("at the embedded node's speed")
        new, warm = measure(home / "fast", options, 0)
        say(f"with create and start at {options.factor:g} times that")
        seconds = (options.factor - 1) * new / 1000 / TASK_SHARE
        slow_new, slow_warm = measure(home / "slow", options, seconds)
        print(f"slower by the tasks: new {slow_new / new:.2f} times, warm {slow_warm / warm:.2f} times")
        say("with kills")
        measure_kills(home, options)
    except (RuntimeError, TimeoutError, grpc.RpcError, OSError) as error:
        print(f"bench/warm: FAILED: {error}", file=sys.stderr)
        return 1
    finally:
        with suppress(OSError):
            for each in (home / "fast", home / "slow", home):
                each.rmdir()
    return 0


if __name__ == "__main__":
    sys.exit(main())
