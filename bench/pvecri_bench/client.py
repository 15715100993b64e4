# SPDX-License-Identifier: Apache-2.0
"""A CRI client that says how long each call took: from the request's sending to the answer's arrival."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

import grpc

from pvecri.cri.proto import cri_pb2 as pb
from pvecri.cri.proto import cri_pb2_grpc

T = TypeVar("T")
U = TypeVar("U")

TIMEOUT = 300.0
"""Seconds for one call: no call is cut short for being slow, but the run must not hang."""

MAX_ANSWER = 64 << 20


class WrongAnswerError(Exception):
    """A runtime answered, and not what was asked for."""


@dataclass(frozen=True)
class Timed(Generic[T]):
    """An answer, and the milliseconds that it took."""

    value: T
    milliseconds: float

    def instead(self, value: U) -> Timed[U]:
        """Another value, of the same time."""
        return Timed(value, self.milliseconds)


class Client:
    """One connection to a runtime. All calls raise grpc.RpcError; several threads may use it."""

    def __init__(self, endpoint: str, handler: str = "") -> None:
        """`endpoint` is `unix:///PATH`, `handler` the runtime handler of its pods."""
        self.endpoint = endpoint
        self._handler = handler
        self._channel = grpc.insecure_channel(endpoint, [("grpc.max_receive_message_length", MAX_ANSWER)])
        self._runtime = _untyped(cri_pb2_grpc.RuntimeServiceStub)(self._channel)
        self._images = _untyped(cri_pb2_grpc.ImageServiceStub)(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def daemon_pid(self) -> int:
        """The process that listens on the socket."""
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(self.endpoint.removeprefix("unix://"))
            credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", credentials)[0])

    # -- the runtime ------------------------------------------------------------------------------------------

    def version(self) -> Timed[pb.VersionResponse]:
        """Version."""
        return _timed(self._runtime.Version, pb.VersionRequest())

    def status(self) -> Timed[pb.StatusResponse]:
        """Status."""
        return _timed(self._runtime.Status, pb.StatusRequest())

    def wait_for_removals(self) -> None:
        """Until pvecri has destroyed the CTs of removed pods; other runtimes have none. TimeoutError."""
        deadline = time.monotonic() + TIMEOUT
        request = pb.StatusRequest(verbose=True)
        while json.loads(self._runtime.Status(request, timeout=TIMEOUT).info.get("removals", "[]")):
            if time.monotonic() > deadline:
                raise TimeoutError("CTs of removed pods are left")
            time.sleep(0.01)

    # -- pods -------------------------------------------------------------------------------------------------

    def run_pod(self, config: pb.PodSandboxConfig) -> Timed[str]:
        """RunPodSandbox: the sandbox's id."""
        request = pb.RunPodSandboxRequest(config=config, runtime_handler=self._handler)
        answer = _timed(self._runtime.RunPodSandbox, request)
        return answer.instead(answer.value.pod_sandbox_id)

    def pod_status(self, pod: str) -> Timed[None]:
        """PodSandboxStatus."""
        return _timed(self._runtime.PodSandboxStatus, pb.PodSandboxStatusRequest(pod_sandbox_id=pod)).instead(None)

    def stop_pod(self, pod: str) -> Timed[None]:
        """StopPodSandbox."""
        return _timed(self._runtime.StopPodSandbox, pb.StopPodSandboxRequest(pod_sandbox_id=pod)).instead(None)

    def remove_pod(self, pod: str) -> Timed[None]:
        """RemovePodSandbox."""
        return _timed(self._runtime.RemovePodSandbox, pb.RemovePodSandboxRequest(pod_sandbox_id=pod)).instead(None)

    def pods(self, labels: dict[str, str]) -> Timed[list[str]]:
        """ListPodSandbox: the ids of those that have the labels."""
        request = pb.ListPodSandboxRequest(filter=pb.PodSandboxFilter(label_selector=labels))
        answer = _timed(self._runtime.ListPodSandbox, request)
        return answer.instead([item.id for item in answer.value.items])

    # -- containers -------------------------------------------------------------------------------------------

    def create(self, pod: str, config: pb.ContainerConfig, sandbox: pb.PodSandboxConfig) -> Timed[str]:
        """CreateContainer: the container's id."""
        request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=config, sandbox_config=sandbox)
        answer = _timed(self._runtime.CreateContainer, request)
        return answer.instead(answer.value.container_id)

    def start(self, container: str) -> Timed[None]:
        """StartContainer."""
        request = pb.StartContainerRequest(container_id=container)
        return _timed(self._runtime.StartContainer, request).instead(None)

    def execute(self, container: str, command: Sequence[str]) -> Timed[None]:
        """ExecSync; WrongAnswerError when the command's status is not 0."""
        request = pb.ExecSyncRequest(container_id=container, cmd=command, timeout=60)
        answer = _timed(self._runtime.ExecSync, request)
        if answer.value.exit_code != 0:
            raise WrongAnswerError(f"ExecSync {command}: {answer.value.exit_code}: {answer.value.stderr!r}")
        return answer.instead(None)

    def container_status(self, container: str) -> Timed[None]:
        """ContainerStatus."""
        request = pb.ContainerStatusRequest(container_id=container)
        return _timed(self._runtime.ContainerStatus, request).instead(None)

    def container_stats(self, container: str) -> Timed[None]:
        """ContainerStats."""
        request = pb.ContainerStatsRequest(container_id=container)
        return _timed(self._runtime.ContainerStats, request).instead(None)

    def stop(self, container: str) -> Timed[None]:
        """StopContainer, without grace: killed at once."""
        request = pb.StopContainerRequest(container_id=container, timeout=0)
        return _timed(self._runtime.StopContainer, request).instead(None)

    def remove(self, container: str) -> Timed[None]:
        """RemoveContainer."""
        request = pb.RemoveContainerRequest(container_id=container)
        return _timed(self._runtime.RemoveContainer, request).instead(None)

    def running(self, labels: dict[str, str]) -> Timed[int]:
        """ListContainers: how many of those that have the labels run."""
        request = pb.ListContainersRequest(filter=pb.ContainerFilter(label_selector=labels))
        answer = _timed(self._runtime.ListContainers, request)
        return answer.instead(sum(each.state == pb.CONTAINER_RUNNING for each in answer.value.containers))

    def containers_of(self, pod: str) -> list[str]:
        """ListContainers: the ids of those of a pod."""
        request = pb.ListContainersRequest(filter=pb.ContainerFilter(pod_sandbox_id=pod))
        return [each.id for each in _timed(self._runtime.ListContainers, request).value.containers]

    def list_stats(self, labels: dict[str, str]) -> Timed[int]:
        """ListContainerStats: how many there are of those that have the labels."""
        request = pb.ListContainerStatsRequest(filter=pb.ContainerStatsFilter(label_selector=labels))
        answer = _timed(self._runtime.ListContainerStats, request)
        return answer.instead(len(answer.value.stats))

    # -- images -----------------------------------------------------------------------------------------------

    def pull(self, image: str) -> Timed[str]:
        """PullImage: the image's id, as containers name it."""
        answer = _timed(self._images.PullImage, pb.PullImageRequest(image=pb.ImageSpec(image=image)))
        return answer.instead(answer.value.image_ref)

    def remove_image(self, image: str) -> Timed[None]:
        """RemoveImage; one that is not there is fine."""
        return _timed(self._images.RemoveImage, pb.RemoveImageRequest(image=pb.ImageSpec(image=image))).instead(
            None
        )


def _timed(method: Any, request: Any) -> Timed[Any]:
    began = time.perf_counter_ns()
    answer = method(request, timeout=TIMEOUT)
    return Timed(answer, (time.perf_counter_ns() - began) / 1e6)


def _untyped(stub: Any) -> Any:
    """The generated stubs carry no types."""
    return stub
