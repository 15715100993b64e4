# SPDX-License-Identifier: Apache-2.0
"""A CRI client as the kubelet is one: the generated stubs, and what every test would otherwise repeat."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import grpc
import pytest
from support.existing import EXISTING
from support.task_times import EXTRA_TIMEOUT

from pvecri.cri.proto import cri_pb2 as pb
from pvecri.cri.proto.cri_pb2_grpc import ImageServiceStub, RuntimeServiceStub

CALL_TIMEOUT, TIMEOUT = (120.0 + EXTRA_TIMEOUT, 60.0 + EXTRA_TIMEOUT) if EXISTING is None else (600.0, 600.0)
"""Seconds after which a test gives up; nothing is asserted about how long things take."""

_OPTIONS = (("grpc.max_receive_message_length", 64 << 20),)
_LOG_LINE = re.compile(rb"^(\S+) (stdout|stderr) ([FP]) (.*)$", re.DOTALL)
_numbers = itertools.count(1)

T = TypeVar("T")


@dataclass(frozen=True)
class LogLine:
    """One line of a CRI log; `partial` when the rest of the text follows in the next one."""

    time: str
    stream: str
    partial: bool
    text: str


def eventually(condition: Callable[[], T], what: str) -> T:
    """The first true value of `condition`, asked again and again: for changes that do not announce themselves."""
    deadline = time.monotonic() + TIMEOUT
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.01)
    return value


@contextmanager
def refused(code: grpc.StatusCode, words: str) -> Iterator[None]:
    """The call inside ends with this status, and its message matches `words`, a regular expression."""
    with pytest.raises(grpc.RpcError) as raised:
        yield
    error: Any = raised.value
    assert error.code() is code, f"{error.code()}: {error.details()}"
    assert re.search(words, error.details()), error.details()


def pod_security(**fields: Any) -> pb.LinuxPodSandboxConfig:
    """The `linux` of a pod; `fields` as LinuxSandboxSecurityContext has them."""
    return pb.LinuxPodSandboxConfig(security_context=pb.LinuxSandboxSecurityContext(**fields))


def security(**fields: Any) -> pb.LinuxContainerConfig:
    """The `linux` of a container, as the kubelet makes it: with a pid namespace of its own unless `fields` say."""
    own_pid = pb.NamespaceOption(pid=pb.CONTAINER)
    context = pb.LinuxContainerSecurityContext(**{"namespace_options": own_pid, **fields})
    return pb.LinuxContainerConfig(security_context=context)


class CriClient:
    """Calls a daemon's socket. Ids are the CRI's strings."""

    def __init__(self, socket: Path, log_directory: Path, image: str = "") -> None:
        """Pods log below `log_directory`; `image` is what containers run when nothing else is said."""
        self.log_directory = log_directory
        self.image = image
        self._channel = grpc.insecure_channel(f"unix:{socket}", options=_OPTIONS)
        self.runtime: Any = RuntimeServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self.images: Any = ImageServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    # -- requests ---------------------------------------------------------------------------------------------

    def pod_config(self, name: str = "", **fields: Any) -> pb.PodSandboxConfig:
        """A pod of its own name; `fields` as PodSandboxConfig has them."""
        number = next(_numbers)
        name = name or f"pod-{number}"
        metadata = pb.PodSandboxMetadata(name=name, namespace="tests", uid=str(uuid4()))
        defaults = {"metadata": metadata, "hostname": name, "log_directory": str(self.log_directory / name)}
        return pb.PodSandboxConfig(**{**defaults, **fields})

    def container_config(
        self, *command: str, name: str = "main", attempt: int = 0, **fields: Any
    ) -> pb.ContainerConfig:
        """A container that runs `command`, with a log; `fields` as ContainerConfig has them."""
        defaults = {
            "metadata": pb.ContainerMetadata(name=name, attempt=attempt),
            "image": pb.ImageSpec(image=self.image),
            "command": command,
            "log_path": f"{name}_{attempt}.log",
            "linux": security(),
        }
        return pb.ContainerConfig(**{**defaults, **fields})

    # -- pods -------------------------------------------------------------------------------------------------

    def run_pod(self, config: pb.PodSandboxConfig | None = None, timeout: float = CALL_TIMEOUT) -> str:
        """RunPodSandbox."""
        request = pb.RunPodSandboxRequest(config=config or self.pod_config())
        return str(self.runtime.RunPodSandbox(request, timeout=timeout).pod_sandbox_id)

    def stop_pod(self, pod: str) -> None:
        """StopPodSandbox."""
        self.runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod), timeout=CALL_TIMEOUT)

    def remove_pod(self, pod: str) -> None:
        """RemovePodSandbox."""
        self.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod), timeout=CALL_TIMEOUT)

    def pod_status(self, pod: str) -> pb.PodSandboxStatus:
        """PodSandboxStatus."""
        return self.pod_info(pod).status

    def pod_info(self, pod: str) -> pb.PodSandboxStatusResponse:
        """PodSandboxStatus, verbose."""
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True)
        response: pb.PodSandboxStatusResponse = self.runtime.PodSandboxStatus(request, timeout=CALL_TIMEOUT)
        return response

    def vmid(self, pod: str) -> int:
        """The number of the pod's CT."""
        return int(json.loads(self.pod_info(pod).info["info"])["vmid"])

    def removals(self) -> dict[int, str]:
        """Status, verbose: the CTs of removed pods that are not destroyed yet, with the error of the last try."""
        info = self.runtime.Status(pb.StatusRequest(verbose=True), timeout=CALL_TIMEOUT).info["removals"]
        return {each["vmid"]: each["error"] for each in json.loads(info)}

    def pods(self, **wanted: Any) -> list[pb.PodSandbox]:
        """ListPodSandbox with a filter."""
        request = pb.ListPodSandboxRequest(filter=pb.PodSandboxFilter(**wanted))
        return list(self.runtime.ListPodSandbox(request, timeout=CALL_TIMEOUT).items)

    # -- containers -------------------------------------------------------------------------------------------

    def create(self, pod: str, config: pb.ContainerConfig) -> str:
        """CreateContainer."""
        request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=config)
        return str(self.runtime.CreateContainer(request, timeout=CALL_TIMEOUT).container_id)

    def start(self, container: str) -> None:
        """StartContainer."""
        self.runtime.StartContainer(pb.StartContainerRequest(container_id=container), timeout=CALL_TIMEOUT)

    def run(self, pod: str, *command: str, **fields: Any) -> str:
        """CreateContainer and StartContainer of `container_config`."""
        container = self.create(pod, self.container_config(*command, **fields))
        self.start(container)
        return container

    def stop(self, container: str, timeout: int = 0) -> None:
        """StopContainer."""
        request = pb.StopContainerRequest(container_id=container, timeout=timeout)
        self.runtime.StopContainer(request, timeout=CALL_TIMEOUT)

    def remove(self, container: str) -> None:
        """RemoveContainer."""
        self.runtime.RemoveContainer(pb.RemoveContainerRequest(container_id=container), timeout=CALL_TIMEOUT)

    def status(self, container: str) -> pb.ContainerStatus:
        """ContainerStatus."""
        request = pb.ContainerStatusRequest(container_id=container)
        status: pb.ContainerStatus = self.runtime.ContainerStatus(request, timeout=CALL_TIMEOUT).status
        return status

    def containers(self, **wanted: Any) -> list[pb.Container]:
        """ListContainers with a filter."""
        request = pb.ListContainersRequest(filter=pb.ContainerFilter(**wanted))
        return list(self.runtime.ListContainers(request, timeout=CALL_TIMEOUT).containers)

    def exec(self, container: str, *command: str, timeout: int = 0) -> pb.ExecSyncResponse:
        """ExecSync."""
        request = pb.ExecSyncRequest(container_id=container, cmd=command, timeout=timeout)
        response: pb.ExecSyncResponse = self.runtime.ExecSync(request, timeout=CALL_TIMEOUT)
        return response

    def output(self, container: str, *command: str) -> str:
        """What a command in a container writes; it must succeed."""
        response = self.exec(container, *command)
        assert response.exit_code == 0, response
        return response.stdout.decode()

    def wait_for_exit(self, container: str) -> pb.ContainerStatus:
        """The container's status once it has ended."""

        def ended() -> pb.ContainerStatus | None:
            status = self.status(container)
            return status if status.state == pb.CONTAINER_EXITED else None

        status = eventually(ended, f"container {container[:12]} ended")
        assert status is not None
        return status

    def logs(self, container: str) -> list[LogLine]:
        """What the container's log holds now."""
        lines = Path(self.status(container).log_path).read_bytes().split(b"\n")[:-1]
        matches = [_LOG_LINE.match(line) for line in lines]
        assert all(matches), lines
        return [
            LogLine(found[1].decode(), found[2].decode(), found[3] == b"P", found[4].decode())
            for found in matches
            if found
        ]

    def text(self, container: str, stream: str = "stdout") -> str:
        """What the container's log holds of one stream, put together."""
        lines = [line for line in self.logs(container) if line.stream == stream]
        return "".join(line.text + ("" if line.partial else "\n") for line in lines)

    def finish(self, pod: str, *command: str, **fields: Any) -> str:
        """Run a container to its end, which must be a success; what it wrote to stdout."""
        container = self.run(pod, *command, **fields)
        status = self.wait_for_exit(container)
        assert status.exit_code == 0, (status, self.logs(container))
        return self.text(container)

    # -- images -----------------------------------------------------------------------------------------------

    def pull(self, image: str) -> str:
        """PullImage."""
        request = pb.PullImageRequest(image=pb.ImageSpec(image=image))
        return str(self.images.PullImage(request, timeout=CALL_TIMEOUT).image_ref)
