# SPDX-License-Identifier: Apache-2.0
"""The runtimes under measurement, a column each, and the turns that they take."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pvecri.cri.proto import cri_pb2 as pb
from pvecri_bench.client import Client, Timed
from pvecri_bench.images import Images
from pvecri_bench.samples import Figures, Samples

T = TypeVar("T")

CommandLines = Callable[[Sequence[str]], bool]
"""Tells wanted command lines from others."""

WORKLOAD = ("sleep", "100000")
"""What every container runs."""


@dataclass(frozen=True, eq=False)
class Column:
    """A runtime; `version` is what it calls itself, and its version.

    `helpers` tells the processes that it keeps for its pods (monitors, shims) from all others; it is None when
    that cannot be told.
    """

    name: str
    version: str
    client: Client
    daemon: int
    helpers: CommandLines | None = None


@dataclass(frozen=True)
class Pod:
    """A pod that runs, and the config that it was made from."""

    id: str
    config: pb.PodSandboxConfig


@dataclass
class Session:
    """One run. `label` sets its pods and containers apart from all others; `directory` is its own.

    `cgroup_parent` is given to every pod, as the kubelet does it.
    """

    columns: tuple[Column, ...]
    images: Images
    label: str
    directory: Path
    cgroup_parent: str
    samples: Samples = field(default_factory=Samples)
    figures: Figures = field(default_factory=Figures)
    _turns: int = 0

    @property
    def labels(self) -> dict[str, str]:
        """What the run's pods and containers carry."""
        return labels(self.label)

    def order(self) -> tuple[Column, ...]:
        """The columns, with another one first each time: nobody has always the warmer cache."""
        self._turns += 1
        shift = self._turns % len(self.columns)
        return self.columns[shift:] + self.columns[:shift]

    def turn(self, call: str, action: Callable[[Column], Timed[T]], times: int = 1) -> dict[str, T]:
        """Make one call at every runtime, one after the other, and that `times` times; the last answers by column.

        `call` names the samples.
        """
        answers: dict[str, T] = {}
        for _ in range(times):
            for column in self.order():
                timed = action(column)
                self.samples.add(call, column.name, timed.milliseconds)
                answers[column.name] = timed.value
        return answers

    def pod_config(self, name: str) -> pb.PodSandboxConfig:
        """A pod of nothing special: its own network, no limits."""
        logs = self.directory / "logs" / name
        logs.mkdir(parents=True, exist_ok=True)
        security = pb.LinuxSandboxSecurityContext(namespace_options=own_pids())
        return pb.PodSandboxConfig(
            metadata=pb.PodSandboxMetadata(name=name, namespace="bench", uid=str(uuid.uuid4())),
            hostname=name,
            log_directory=str(logs),
            labels=self.labels,
            linux=pb.LinuxPodSandboxConfig(cgroup_parent=self.cgroup_parent, security_context=security),
        )

    def container_config(self, name: str, image: str) -> pb.ContainerConfig:
        """A container that sleeps; `image` is an id."""
        security = pb.LinuxContainerSecurityContext(namespace_options=own_pids())
        return pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name=name),
            # CRI-O refuses a container without the name that the user gave.
            image=pb.ImageSpec(image=image, user_specified_image=self.images.base),
            command=WORKLOAD,
            log_path=f"{name}.log",
            labels=self.labels,
            linux=pb.LinuxContainerConfig(security_context=security),
        )

    def start_pod(self, column: Column, name: str, containers: int, image: str) -> Pod:
        """A pod with containers that run, unmeasured."""
        config = self.pod_config(name)
        pod = Pod(column.client.run_pod(config).value, config)
        for number in range(containers):
            spec = self.container_config(f"c{number}", image)
            column.client.start(column.client.create(pod.id, spec, config).value)
        return pod


def own_pids() -> pb.NamespaceOption:
    """A PID namespace for each container, as a kubelet asks for it unless shareProcessNamespace is set."""
    return pb.NamespaceOption(pid=pb.CONTAINER)


def labels(label: str) -> dict[str, str]:
    """What the pods and containers of the run with this label carry."""
    return {"pvecri-bench": label}


def end_pod(column: Column, pod: str) -> None:
    """As the kubelet does it: kill the containers, stop the pod, remove it."""
    for container in column.client.containers_of(pod):
        column.client.stop(container)
    column.client.stop_pod(pod)
    column.client.remove_pod(pod)


def say(words: str) -> None:
    """Tell whoever waits what is going on."""
    print(f"bench: {words}", file=sys.stderr, flush=True)
