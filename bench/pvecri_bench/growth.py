# SPDX-License-Identifier: Apache-2.0
"""`python -m pvecri_bench.growth`: what calls cost beside more and more pods, containers and images.

A call may grow with what it answers with; a pod's start not at all. One daemon with an embedded node. Shown are
CPU times beside the time that passes, which other load on the machine changes more. 250 pods need 250 and more of
kernel.keys.root_maxkeys, some 1,500 of kernel.pid_max, and a GiB for them and the kernel's mounts.
"""

from __future__ import annotations

import argparse
import json
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc
from trial.plan import Plan, make_plan
from trial.registry import running_registry
from trial.stack import end_on_signals

from pvecri.cri.proto import cri_pb2 as pb
from pvecri_bench import cpu, images, machine, ours, reads
from pvecri_bench.client import Client
from pvecri_bench.many_images import Publisher
from pvecri_bench.memory import helpers, resident_mib
from pvecri_bench.plot import write_svg
from pvecri_bench.restart import Restart, restart
from pvecri_bench.session import WORKLOAD, labels, own_pids, say
from pvecri_bench.subscribers import event_cpu
from pvecri_bench.warm import remove

IDLE_SECONDS = 11.0
"""For which the daemon is watched while nothing is asked of it: one sample of all CPU times."""

STARTED = {"pods": "Run, Create and Start", "containers": "Create and Start", "images": "PullImage"}
"""What adds one of each."""

EVENT_ROUNDS = 20

LAST = 8
"""Starts, the last ones before each size is reached, whose costs are averaged."""


@dataclass(frozen=True)
class Start:
    """Milliseconds of a pod's RunPodSandbox, CreateContainer and StartContainer, and of CPU for all three."""

    run: float
    create: float
    start: float
    cpu: float
    programs_cpu: float

    @property
    def all(self) -> float:
        """All three calls."""
        return self.run + self.create + self.start


@dataclass(frozen=True)
class Size:
    """What was measured at a number of pods, containers or images. Memory in MiB, `idle_cpu` in percent.

    `event` is the CPU of one event to one client, in milliseconds; `mounts_mib` the memory for the mounts of
    all mount namespaces.
    """

    number: int
    reads: Mapping[str, reads.Cost]
    start: Start | None = None
    idle_cpu: float = 0.0
    restart: Restart | None = None
    event: float = 0.0
    mounts_mib: float = 0.0
    rss: float = 0.0
    helpers_pss: float = 0.0


class Node:
    """A daemon with an embedded node, and what runs on it."""

    def __init__(self, plan: Plan, client: Client, image: str, label: str) -> None:
        self.plan = plan
        self.client = client
        self._image = image
        self._labels = labels(label)
        self.pods: list[str] = []
        self.containers: list[str] = []

    @property
    def endpoint(self) -> str:
        """Of the CRI."""
        return f"unix://{self.plan.socket}"

    def _pod_config(self) -> pb.PodSandboxConfig:
        name = f"pod-{len(self.pods)}"
        return pb.PodSandboxConfig(
            metadata=pb.PodSandboxMetadata(name=name, namespace="bench", uid=secrets.token_hex(8)),
            hostname=name,
            log_directory=str(self.plan.state),
            labels=self._labels,
            linux=pb.LinuxPodSandboxConfig(
                security_context=pb.LinuxSandboxSecurityContext(namespace_options=own_pids())
            ),
        )

    def run_pod(self) -> None:
        """One more pod, without a container."""
        self.pods.append(self.client.run_pod(self._pod_config()).value)

    def start_pod(self) -> Start:
        """One more pod with a container."""
        config = self._pod_config()
        pid = self.client.daemon_pid()
        own, programs = cpu.own_ms(pid), cpu.children_ms(pid)
        run = self.client.run_pod(config)
        self.pods.append(run.value)
        create, start = self._add_container(run.value, "c0", config)
        return Start(
            run=run.milliseconds,
            create=create,
            start=start,
            cpu=cpu.own_ms(pid) - own,
            programs_cpu=cpu.children_ms(pid) - programs,
        )

    def _add_container(self, pod: str, name: str, config: pb.PodSandboxConfig) -> tuple[float, float]:
        create = self.client.create(pod, self._container(name), config)
        self.containers.append(create.value)
        return create.milliseconds, self.client.start(create.value).milliseconds

    def _container(self, name: str) -> pb.ContainerConfig:
        return pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name=name),
            image=pb.ImageSpec(image=self._image),
            command=WORKLOAD,
            labels=self._labels,
            linux=pb.LinuxContainerConfig(
                security_context=pb.LinuxContainerSecurityContext(namespace_options=own_pids())
            ),
        )

    def start_container(self) -> Start:
        """One more container in the last pod."""
        pid = self.client.daemon_pid()
        own, programs = cpu.own_ms(pid), cpu.children_ms(pid)
        times = self._add_container(self.pods[-1], f"c{len(self.containers)}", pb.PodSandboxConfig())
        used, waited = cpu.own_ms(pid) - own, cpu.children_ms(pid) - programs
        return Start(run=0, create=times[0], start=times[1], cpu=used, programs_cpu=waited)

    def costs(self, directory: Path, rounds: int) -> dict[str, reads.Cost]:
        """Of each read."""
        first = self.containers[0] if self.containers else ""
        wanted = reads.requests(self.pods[0] if self.pods else "", first, self._image)
        return reads.measure(self.endpoint, self.client.daemon_pid(), directory, wanted, rounds)

    def event_cpu(self) -> float:
        """What an event of the last pod costs for each client of GetContainerEvents (subscribers.py)."""
        spec = self._container("event")

        def change() -> None:
            # Two events: CREATED and DELETED.
            self.client.remove(self.client.create(self.pods[-1], spec, pb.PodSandboxConfig()).value)

        return event_cpu(self.endpoint, self.client.daemon_pid(), change, events=2, rounds=EVENT_ROUNDS)

    def idle_cpu(self) -> float:
        """Percent of one CPU that the daemon uses while nobody asks it for anything."""
        pid = self.client.daemon_pid()
        before = cpu.own_ms(pid)
        time.sleep(IDLE_SECONDS)
        return (cpu.own_ms(pid) - before) / IDLE_SECONDS / 10

    def remove_pods(self) -> None:
        """All of them."""
        for pod in self.pods:
            self.client.stop_pod(pod)
            self.client.remove_pod(pod)
        self.pods, self.containers = [], []


def mean(starts: Sequence[Start]) -> Start:
    """The mean of each figure, of the times the median."""
    return Start(
        run=statistics.median(each.run for each in starts),
        create=statistics.median(each.create for each in starts),
        start=statistics.median(each.start for each in starts),
        cpu=statistics.mean(each.cpu for each in starts),
        programs_cpu=statistics.mean(each.programs_cpu for each in starts),
    )


def mounts_mib() -> float:
    """The kernel's memory for mounts; 0 where it shares their slabs with other objects (slab_nomerge)."""
    for line in Path("/proc/slabinfo").read_text().splitlines():
        name, *numbers = line.split()
        if name == "mnt_cache":
            return int(numbers[1]) * int(numbers[2]) / (1 << 20)
    return 0.0


def measure_pods(node: Node, options: argparse.Namespace, stack: ExitStack) -> list[Size]:
    """At each number of pods, of one container each."""
    sizes = []
    for number in options.pods:
        starts = [node.start_pod() for _ in range(number - len(node.pods))]
        say(f"{number} pods")
        costs = node.costs(node.plan.state / f"answers-{number}", options.rounds)
        idle = node.idle_cpu()
        used = resident_mib(node.client.daemon_pid())
        kept = helpers(ours.helpers(node.plan))
        event, mounted = node.event_cpu(), mounts_mib()
        again = restart(node.plan, number, stack)
        sizes.append(
            Size(
                number=number,
                reads=costs,
                start=mean(starts[-LAST:]),
                idle_cpu=idle,
                restart=again,
                event=event,
                mounts_mib=mounted,
                rss=used,
                helpers_pss=kept.pss_mib / number,
            )
        )
        node.client = stack.enter_context(Client(node.endpoint))
    node.remove_pods()
    return sizes


def measure_containers(node: Node, options: argparse.Namespace) -> list[Size]:
    """At each number of containers in one pod."""
    if not options.containers:
        return []
    node.run_pod()
    sizes: list[Size] = []
    starts: list[Start] = []
    for number in options.containers:
        starts += [node.start_container() for _ in range(number - len(node.containers))]
        say(f"{number} containers in a pod")
        costs = node.costs(node.plan.state / f"answers-containers-{number}", options.rounds)
        used = resident_mib(node.client.daemon_pid())
        event = node.event_cpu()
        sizes.append(Size(number=number, reads=costs, start=mean(starts[-LAST:]), event=event, rss=used))
    node.remove_pods()
    return sizes


def measure_images(node: Node, publisher: Publisher, options: argparse.Namespace) -> list[Size]:
    """At each number of images in the store, besides the one that containers run; `start.run` is PullImage."""
    sizes, count = [], 0
    for number in options.images:
        pid, starts = node.client.daemon_pid(), []
        for reference in map(publisher.push, range(count, number)):
            own, programs = cpu.own_ms(pid), cpu.children_ms(pid)
            pull = node.client.pull(reference)
            used, waited = cpu.own_ms(pid) - own, cpu.children_ms(pid) - programs
            starts.append(Start(run=pull.milliseconds, create=0, start=0, cpu=used, programs_cpu=waited))
        count = number
        say(f"{number} images")
        costs = node.costs(node.plan.state / f"answers-images-{number}", options.rounds)
        sizes.append(Size(number=number, reads=costs, start=mean(starts[-LAST:]), rss=resident_mib(pid)))
    return sizes


def table(sizes: Sequence[Size], unit: str, started: str) -> str:
    """A Markdown table with a column for each size; the last column is the time in empty handlers' times."""
    numbers = [f"{size.number} {unit}" for size in sizes]
    lines = ["| | " + " | ".join(numbers) + " | empty handlers |", "|---|" + "--:|" * (len(sizes) + 1)]

    def row(name: str, values: Sequence[float], digits: int, floor: str = "") -> None:
        if any(values):
            lines.append(f"| {name} | " + " | ".join(f"{value:,.{digits}f}" for value in values) + f" | {floor} |")

    starts = [size.start for size in sizes if size.start]
    row(f"{started}, ms", [each.all for each in starts], 0)
    row(f"{started}: the daemon's CPU, ms", [each.cpu for each in starts], 1)
    row(f"{started}: its programs' CPU, ms", [each.programs_cpu for each in starts], 0)
    for call in sizes[-1].reads:
        costs = [size.reads[call] for size in sizes if call in size.reads]
        row(f"{call}: the daemon's CPU, ms", [each.cpu for each in costs], 2, f"{costs[-1].ratio:.1f}")
    row("CPU while idle, %", [size.idle_cpu for size in sizes], 1)
    row("event to a client: the daemon's CPU, ms", [size.event for size in sizes], 3)
    again = [size.restart for size in sizes if size.restart]
    row("start of the daemon until it lists its pods, s", [each.seconds for each in again], 2)
    row("start of the daemon: its CPU until then, ms", [each.cpu for each in again], 0)
    row("daemon's RSS, MiB", [size.rss for size in sizes], 1)
    row("helpers' PSS per pod, MiB", [size.helpers_pss for size in sizes], 2)
    row("the kernel's memory for mounts, MiB", [size.mounts_mib for size in sizes], 0)
    return "\n".join(lines)


def plot(directory: Path, pods: Sequence[Size]) -> None:
    """Two SVG files: pods' starts, and reads."""
    starts = {
        "time of all three calls, ms": [(size.number, size.start.all) for size in pods if size.start],
        "CPU of the programs started, ms": [(size.number, size.start.programs_cpu) for size in pods if size.start],
        "CPU of the daemon, ms": [(size.number, size.start.cpu) for size in pods if size.start],
    }
    write_svg(directory / "growth-starts.svg", "Start of a pod with one container", "running pods", starts)
    calls = {
        call: [(size.number, size.reads[call].cpu) for size in pods if call in size.reads]
        for call in pods[-1].reads
        if call not in {"ListImages", "ImageStatus"}
    }
    write_svg(directory / "growth-reads.svg", "CPU of the daemon for a call, ms", "running pods", calls, log=True)


@contextmanager
def running_node(home: Path) -> Iterator[tuple[Node, Publisher, ExitStack]]:
    """A node with an image to run, a publisher of further images, and the stack that ends them."""
    with ExitStack() as stack:
        registry = stack.enter_context(running_registry(home / "registry"))
        published = images.publish(registry, home / "images")
        plan = make_plan(home / "node", insecure_registries=(registry,))
        stack.callback(remove, plan)
        stack.enter_context(ours.running_pvecri(plan))
        client = stack.enter_context(Client(f"unix://{plan.socket}"))
        image = client.pull(published.base).value
        yield Node(plan, client, image, secrets.token_hex(3)), Publisher(registry), stack


def _numbers(text: str) -> list[int]:
    return sorted(int(part) for part in text.split(",") if part)


def main() -> int:
    """The exit status: 0, or 1 if something failed. A slow number is no failure."""
    parser = argparse.ArgumentParser(prog="bench/growth", description=__doc__)
    parser.add_argument("--pods", type=_numbers, default=[10, 50, 110, 250], metavar="N,…")
    parser.add_argument("--containers", type=_numbers, default=[1, 10, 50], metavar="N,…", help="in one pod")
    parser.add_argument("--images", type=_numbers, default=[10, 100, 1000], metavar="N,…", help="in the store")
    parser.add_argument("--rounds", type=int, default=100, help="calls of each read (default: 100)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="DIRECTORY", help="write SVG files; needs matplotlib")
    options = parser.parse_args()
    end_on_signals()
    home = Path(f"/var/lib/pvecri-bench-{secrets.token_hex(3)}")
    home.mkdir()
    print(machine.describe().line())
    try:
        with running_node(home) as (node, publisher, stack):
            found = {
                "images": measure_images(node, publisher, options),
                "containers": measure_containers(node, options),
                "pods": measure_pods(node, options, stack),
            }
    except (RuntimeError, TimeoutError, grpc.RpcError, OSError) as error:
        print(f"bench/growth: FAILED: {error}", file=sys.stderr)
        return 1
    finally:
        subprocess.run(["rm", "-rf", "--one-file-system", str(home)], check=False)
    for name, started in STARTED.items():
        if found[name]:
            print(table(found[name], name, started) + "\n")
    if options.json:
        options.json.write_text(
            json.dumps({name: [asdict(each) for each in sizes] for name, sizes in found.items()})
        )
    if options.plot and found["pods"]:
        plot(options.plot, found["pods"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
