# SPDX-License-Identifier: Apache-2.0
"""The calls that read, beside a grpc.aio server that answers with the same bytes and does nothing else."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message

from pvecri.cri.proto import cri_pb2 as pb
from pvecri_bench import cpu
from pvecri_bench.client import MAX_ANSWER, TIMEOUT

START_TIMEOUT = 20.0


@dataclass(frozen=True)
class Cost:
    """What a call costs: milliseconds of the server's CPU, mean, and until the answer is there, median."""

    cpu: float
    time: float
    floor_cpu: float
    floor_time: float

    @property
    def ratio(self) -> float:
        """The time as a multiple of the floor's."""
        return self.time / self.floor_time


def requests(pod: str, container: str, image: str) -> dict[str, Message]:
    """Every read of a kubelet, by name; the ids may be empty, without the calls that need them."""
    found: dict[str, Message] = {
        "Version": pb.VersionRequest(),
        "Status": pb.StatusRequest(),
        "ListPodSandbox": pb.ListPodSandboxRequest(),
        "ListContainers": pb.ListContainersRequest(),
        "ListImages": pb.ListImagesRequest(),
        "ListContainerStats": pb.ListContainerStatsRequest(),
        "ListPodSandboxStats": pb.ListPodSandboxStatsRequest(),
        "ListPodSandboxMetrics": pb.ListPodSandboxMetricsRequest(),
    }
    if pod:
        found["PodSandboxStatus"] = pb.PodSandboxStatusRequest(pod_sandbox_id=pod)
    if container:
        found["ContainerStatus"] = pb.ContainerStatusRequest(container_id=container)
        found["ContainerStats"] = pb.ContainerStatsRequest(container_id=container)
    if image:
        found["ImageStatus"] = pb.ImageStatusRequest(image=pb.ImageSpec(image=image))
    return found


def _path(call: str) -> str:
    service = "ImageService" if "Image" in call else "RuntimeService"
    return f"/runtime.v1.{service}/{call}"


@contextmanager
def _running_floor(directory: Path) -> Iterator[tuple[grpc.Channel, int]]:
    socket = directory / "floor.sock"
    command = [sys.executable, "-m", "pvecri_bench.floor", str(socket), str(directory)]
    with subprocess.Popen(command) as process:
        try:
            with _channel(f"unix://{socket}") as channel:
                grpc.channel_ready_future(channel).result(START_TIMEOUT)
                yield channel, process.pid
        finally:
            process.kill()
            socket.unlink(missing_ok=True)


def _channel(endpoint: str) -> grpc.Channel:
    return grpc.insecure_channel(endpoint, [("grpc.max_receive_message_length", MAX_ANSWER)])


class _Server:
    def __init__(self, channel: grpc.Channel, pid: int) -> None:
        self._channel = channel
        self._pid = pid
        self.times: list[float] = []
        self.cpu = 0.0

    def call(self, name: str, request: bytes, times: int = 1) -> bytes:
        """The last answer."""
        call: Any = self._channel.unary_unary(_path(name))
        begin = cpu.own_ms(self._pid)
        for _ in range(times):
            sent = time.perf_counter()
            answer: bytes = call(request, timeout=TIMEOUT)
            self.times.append((time.perf_counter() - sent) * 1000)
        self.cpu += cpu.own_ms(self._pid) - begin
        return answer

    def reset(self) -> None:
        self.times, self.cpu = [], 0.0


def measure(
    endpoint: str, pid: int, directory: Path, wanted: Mapping[str, Message], rounds: int, batch: int = 10
) -> dict[str, Cost]:
    """Each call `rounds` times, `batch` in a row in turns with the floor's."""
    costs = {}
    directory.mkdir(parents=True)
    with _channel(endpoint) as channel:
        daemon = _Server(channel, pid)
        serialized = {name: request.SerializeToString() for name, request in wanted.items()}
        for name, request in serialized.items():
            (directory / name).write_bytes(daemon.call(name, request))
        with _running_floor(directory) as (other, floor_pid):
            floor = _Server(other, floor_pid)
            for name, request in serialized.items():
                for server in (daemon, floor):
                    server.call(name, request, batch)
                    server.reset()
                for turn in range(max(1, rounds // batch)):
                    for server in (daemon, floor) if turn % 2 else (floor, daemon):
                        server.call(name, request, batch)
                count = len(daemon.times)
                costs[name] = Cost(
                    cpu=daemon.cpu / count,
                    time=statistics.median(daemon.times),
                    floor_cpu=floor.cpu / count,
                    floor_time=statistics.median(floor.times),
                )
    return costs
