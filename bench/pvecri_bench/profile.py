# SPDX-License-Identifier: Apache-2.0
"""`python -m pvecri_bench.profile`: where the time of each call in a container's life goes, by kind of work.

One daemon with an embedded node runs and removes pods, one at a time. It records its programs, changes of CTs in
Proxmox, worker threads and writes to its store (spans.py); at each moment the one that began last counts. The rest
is the daemon's own code, and before and after that gRPC.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import grpc
from trial.plan import make_plan
from trial.programs import running
from trial.registry import running_registry
from trial.stack import end_on_signals

from pvecri.cri.proto import cri_pb2 as pb
from pvecri_bench import images, machine, ours, spans
from pvecri_bench.client import Client, Timed
from pvecri_bench.session import WORKLOAD, own_pids, say
from pvecri_bench.warm import remove, wait_until

OWN = "own code, waiting included"
GRPC = "gRPC and client"

LEAST_MS = 0.05
"""What took less is not shown."""

Span = tuple[str, int, int]
"""Kind, begin and end."""


def shares(recorded: Iterable[Span], begin: int, end: int) -> dict[str, int]:
    """How much of the time from `begin` to `end` belongs to each kind: at each moment to the span that began last.

    Pure. A span of the kind `call` is the daemon's own time where it has no other; outside of it is gRPC's.
    """
    clipped = [(kind, max(first, begin), min(last, end), first) for kind, first, last in recorded]
    inside = [each for each in clipped if each[1] < each[2]]
    moments = sorted({begin, end, *(each[1] for each in inside), *(each[2] for each in inside)})
    found: defaultdict[str, int] = defaultdict(int)
    for first, last in pairwise(moments):
        active = [each for each in inside if each[1] <= first and each[2] >= last]
        kind = max(active, key=lambda each: each[3])[0] if active else GRPC
        found[OWN if kind == spans.CALL else kind] += last - first
    return dict(found)


class Profile:
    """The shares of each call in all rounds."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._found: defaultdict[str, list[dict[str, int]]] = defaultdict(list)

    def call(self, name: str, action: Callable[[], Timed[str] | Timed[None]]) -> str:
        """Make a call, and read what the daemon did in its time."""
        position = self._file.stat().st_size
        begin = time.monotonic_ns()
        answer = action()
        end = time.monotonic_ns()
        time.sleep(0.05)  # until spans of programs that have ended are written
        with self._file.open() as file:
            file.seek(position)
            lines = [json.loads(line) for line in file if line.endswith("\n")]
        self._found[name].append(shares([(kind, first, last) for kind, first, last in lines], begin, end))
        return answer.value or ""

    def table(self) -> str:
        """A Markdown table for each call: kind, milliseconds (mean) and share."""
        return "\n\n".join(_table(name, rounds) for name, rounds in self._found.items())


def _table(name: str, rounds: Sequence[Mapping[str, int]]) -> str:
    kinds = {kind for each in rounds for kind in each}
    means = {kind: statistics.mean(each.get(kind, 0) for each in rounds) / 1e6 for kind in kinds}
    total = sum(means.values())
    lines = [f"| {name}, {total:.0f} ms | ms | share |", "|---|--:|--:|"]
    shown = {kind: mean for kind, mean in means.items() if mean >= LEAST_MS}
    for kind, mean in sorted(shown.items(), key=lambda each: -each[1]):
        lines.append(f"| {kind} | {mean:.1f} | {100 * mean / total:.0f} % |")
    return "\n".join(lines)


def live(client: Client, profile: Profile, image: str, directory: Path, number: int) -> None:
    """One pod with one container, from its start to its removal."""
    sandbox = pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name=f"pod-{number}", namespace="bench", uid=secrets.token_hex(8)),
        hostname=f"pod-{number}",
        log_directory=str(directory),
        linux=pb.LinuxPodSandboxConfig(
            security_context=pb.LinuxSandboxSecurityContext(namespace_options=own_pids())
        ),
    )
    config = pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name="main"),
        image=pb.ImageSpec(image=image),
        command=WORKLOAD,
        log_path="main",
        linux=pb.LinuxContainerConfig(
            security_context=pb.LinuxContainerSecurityContext(namespace_options=own_pids())
        ),
    )
    pod = profile.call("RunPodSandbox", lambda: client.run_pod(sandbox))
    container = profile.call("CreateContainer", lambda: client.create(pod, config, sandbox))
    profile.call("StartContainer", lambda: client.start(container))
    profile.call("ExecSync", lambda: client.execute(container, ["true"]))
    profile.call("StopContainer, timeout 0", lambda: client.stop(container))
    profile.call("RemoveContainer", lambda: client.remove(container))
    profile.call("StopPodSandbox", lambda: client.stop_pod(pod))
    profile.call("RemovePodSandbox", lambda: client.remove_pod(pod))


def measure(home: Path, options: argparse.Namespace) -> str:
    """The tables."""
    with ExitStack() as stack:
        registry = stack.enter_context(running_registry(home / "registry"))
        published = images.publish(registry, home / "images")
        plan = make_plan(home / "node", insecure_registries=(registry,))
        stack.callback(remove, plan)
        stack.enter_context(
            ours.running_pvecri(plan, settings=f"\n[proxmox.warm_pods]\nunprivileged = {options.warm}\n")
        )
        with Client(f"unix://{plan.socket}") as client:
            os.kill(client.daemon_pid(), signal.SIGKILL)
        plan.socket.unlink()
        recorded = plan.state / "spans"
        recorded.touch()
        command = [
            sys.executable,
            "-m",
            "pvecri_bench.spans",
            str(recorded),
            "--config",
            str(plan.config),
            "serve",
        ]
        stack.enter_context(running(command, plan.state / "profiled.log"))
        wait_until(plan.socket.is_socket, "the daemon serves")
        client = stack.enter_context(Client(f"unix://{plan.socket}"))
        image = client.pull(published.base).value
        live(client, Profile(recorded), image, plan.state, 0)
        say(f"{options.rounds} pods")
        profile = Profile(recorded)
        for number in range(1, options.rounds + 1):
            time.sleep(options.pause)
            live(client, profile, image, plan.state, number)
        return profile.table()


def main() -> int:
    """The exit status: 0, or 1 if something failed."""
    parser = argparse.ArgumentParser(prog="bench/profile", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="pods (default: 20)")
    parser.add_argument("--warm", type=int, default=0, metavar="N", help="proxmox.warm_pods (default: 0)")
    parser.add_argument(
        "--pause", type=float, default=0.0, metavar="S", help="seconds before each pod (default: 0)"
    )
    options = parser.parse_args()
    end_on_signals()
    home = Path(f"/var/lib/pvecri-bench-{secrets.token_hex(3)}")
    home.mkdir()
    print(machine.describe().line() + "\n")
    try:
        print(measure(home, options))
    except (RuntimeError, TimeoutError, grpc.RpcError, OSError) as error:
        print(f"bench/profile: FAILED: {error}", file=sys.stderr)
        return 1
    finally:
        subprocess.run(["rm", "-rf", "--one-file-system", str(home)], check=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
