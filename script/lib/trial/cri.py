# SPDX-License-Identifier: Apache-2.0
"""A small CRI client: the calls that the demo and `script/serve` make, over the generated stubs."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import grpc

from pvecri.cri.proto import cri_pb2 as pb
from pvecri.cri.proto import cri_pb2_grpc

TIMEOUT = 120.0
"""Seconds for one call."""


class CriClient:
    """One connection to a runtime's socket. Errors of calls are grpc.RpcError."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self._channel = grpc.insecure_channel(f"unix:{socket}")
        self._runtime = _untyped(cri_pb2_grpc.RuntimeServiceStub)(self._channel)
        self._images = _untyped(cri_pb2_grpc.ImageServiceStub)(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def version(self) -> pb.VersionResponse:
        """Version."""
        response: pb.VersionResponse = self._runtime.Version(pb.VersionRequest(), timeout=TIMEOUT)
        return response

    def wait_until_ready(self, timeout: float) -> None:
        """Until Status says RuntimeReady; TimeoutError with the runtime's own words after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while unmet := [condition for condition in self.status() if not condition.status]:
            if time.monotonic() > deadline:
                raise TimeoutError("; ".join(f"{each.type}: {each.message}" for each in unmet))
            time.sleep(0.05)

    def status(self) -> Sequence[pb.RuntimeCondition]:
        """Status: the conditions. Waits for the runtime to listen."""
        response: pb.StatusResponse = self._runtime.Status(
            pb.StatusRequest(), timeout=TIMEOUT, wait_for_ready=True
        )
        return response.status.conditions

    def wait_for_removals(self, timeout: float) -> None:
        """Until Proxmox has destroyed the CTs of all removed pods; TimeoutError with what they wait for."""
        deadline = time.monotonic() + timeout
        while left := json.loads(self._verbose_status().info["removals"]):
            if time.monotonic() > deadline:
                raise TimeoutError("; ".join(f"CT {each['vmid']}: {each['error'] or 'no error'}" for each in left))
            time.sleep(0.05)

    def _verbose_status(self) -> pb.StatusResponse:
        response: pb.StatusResponse = self._runtime.Status(pb.StatusRequest(verbose=True), timeout=TIMEOUT)
        return response

    def pull(self, image: str) -> str:
        """PullImage; returns the image's id."""
        request = pb.PullImageRequest(image=pb.ImageSpec(image=image))
        response: pb.PullImageResponse = self._images.PullImage(request, timeout=TIMEOUT)
        return response.image_ref

    def image(self, image: str) -> pb.Image:
        """ImageStatus."""
        request = pb.ImageStatusRequest(image=pb.ImageSpec(image=image))
        response: pb.ImageStatusResponse = self._images.ImageStatus(request, timeout=TIMEOUT)
        return response.image

    def remove_image(self, image: str) -> None:
        """RemoveImage."""
        self._images.RemoveImage(pb.RemoveImageRequest(image=pb.ImageSpec(image=image)), timeout=TIMEOUT)

    def run_pod(self, config: pb.PodSandboxConfig) -> str:
        """RunPodSandbox; returns the sandbox's id."""
        request = pb.RunPodSandboxRequest(config=config)
        response: pb.RunPodSandboxResponse = self._runtime.RunPodSandbox(request, timeout=TIMEOUT)
        return response.pod_sandbox_id

    def pod(self, sandbox: str) -> pb.PodSandboxStatusResponse:
        """PodSandboxStatus, verbose."""
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=sandbox, verbose=True)
        response: pb.PodSandboxStatusResponse = self._runtime.PodSandboxStatus(request, timeout=TIMEOUT)
        return response

    def pods(self) -> list[str]:
        """ListPodSandbox: the ids."""
        response: pb.ListPodSandboxResponse = self._runtime.ListPodSandbox(
            pb.ListPodSandboxRequest(), timeout=TIMEOUT
        )
        return [item.id for item in response.items]

    def stop_pod(self, sandbox: str) -> None:
        """StopPodSandbox."""
        self._runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=sandbox), timeout=TIMEOUT)

    def remove_pod(self, sandbox: str) -> None:
        """RemovePodSandbox. The CT is destroyed afterwards: `wait_for_removals`."""
        self._runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=sandbox), timeout=TIMEOUT)

    def run_container(self, sandbox: str, config: pb.ContainerConfig, pod: pb.PodSandboxConfig) -> str:
        """CreateContainer and StartContainer; returns the container's id."""
        request = pb.CreateContainerRequest(pod_sandbox_id=sandbox, config=config, sandbox_config=pod)
        response: pb.CreateContainerResponse = self._runtime.CreateContainer(request, timeout=TIMEOUT)
        start = pb.StartContainerRequest(container_id=response.container_id)
        self._runtime.StartContainer(start, timeout=TIMEOUT)
        return response.container_id

    def exec_sync(self, container: str, *command: str) -> str:
        """ExecSync; returns what the command wrote to its standard output."""
        request = pb.ExecSyncRequest(container_id=container, cmd=command, timeout=10)
        response: pb.ExecSyncResponse = self._runtime.ExecSync(request, timeout=TIMEOUT)
        if response.exit_code:
            raise RuntimeError(f"{' '.join(command)}: status {response.exit_code}: {response.stderr.decode()}")
        return response.stdout.decode()

    def stats(self, container: str) -> pb.ContainerStats:
        """ContainerStats."""
        request = pb.ContainerStatsRequest(container_id=container)
        response: pb.ContainerStatsResponse = self._runtime.ContainerStats(request, timeout=TIMEOUT)
        return response.stats


def _untyped(stub: Any) -> Any:
    """The generated stubs carry no types."""
    return stub
