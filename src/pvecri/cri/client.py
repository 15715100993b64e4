# SPDX-License-Identifier: Apache-2.0
"""Clients of the CRI, for the `pvecri` command: plain values in and out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import msgspec

from pvecri.cri.proto import cri_pb2 as pb
from pvecri.cri.proto import cri_pb2_grpc
from pvecri.errors import PvecriError
from pvecri.model import Image, ImageId

TIMEOUT = 30.0
"""Seconds that the daemon has for an answer."""

STOP_TIMEOUT = 60.0
"""Seconds that it has for the end of a pod: a CNI plugin and a task of Proxmox's."""


class ImageClient:
    """A client connected to a daemon; see `connected`. Errors are PvecriError with the daemon's message."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = cri_pb2_grpc.ImageServiceStub(channel)  # type: ignore[no-untyped-call]

    async def list(self) -> tuple[Image, ...]:
        """All images, with the fields that the CRI has."""
        with _errors():
            response = await self._stub.ListImages(pb.ListImagesRequest())
        return tuple(_image(image) for image in response.images)

    async def inspect(self, reference: str) -> tuple[Image, dict[str, Any]] | None:
        """The image of this name, ID or prefix of an ID, with its verbose info, decoded; None if there is none."""
        request = pb.ImageStatusRequest(image=pb.ImageSpec(image=reference), verbose=True)
        with _errors():
            response = await self._stub.ImageStatus(request)
        if not response.image.id:
            return None
        return _image(response.image), msgspec.json.decode(response.info["info"])

    async def pull(self, reference: str) -> ImageId:
        """Pull an image; returns its id."""
        with _errors():
            response = await self._stub.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=reference)))
        return ImageId(response.image_ref)

    async def remove(self, reference: str) -> None:
        """Remove an image. Idempotent."""
        with _errors():
            await self._stub.RemoveImage(pb.RemoveImageRequest(image=pb.ImageSpec(image=reference)))


class Pod(msgspec.Struct, frozen=True):
    """A pod of ListPodSandbox; `state` is `Ready` or `NotReady`, `created` nanoseconds since the epoch."""

    id: str
    namespace: str
    name: str
    state: str
    created: int


class Condition(msgspec.Struct, frozen=True):
    """A condition of Status."""

    type: str
    met: bool
    reason: str
    message: str


class RuntimeStatus(msgspec.Struct, frozen=True):
    """What the daemon says of itself; `info` is Status's verbose part, decoded."""

    version: str
    conditions: list[Condition]
    info: dict[str, Any]
    pods: list[Pod]
    containers: dict[str, int]
    images: int
    image_bytes: int


async def runtime_status(path: Path) -> RuntimeStatus:
    """Ask the daemon that serves on the unix socket `path`; PvecriError if it does not answer."""
    async with grpc.aio.insecure_channel(f"unix://{path}") as channel:
        runtime = cri_pb2_grpc.RuntimeServiceStub(channel)  # type: ignore[no-untyped-call]
        with _errors():
            version = await runtime.Version(pb.VersionRequest(), timeout=TIMEOUT)
            status = await runtime.Status(pb.StatusRequest(verbose=True), timeout=TIMEOUT)
            pods = await runtime.ListPodSandbox(pb.ListPodSandboxRequest(), timeout=TIMEOUT)
            containers = await runtime.ListContainers(pb.ListContainersRequest(), timeout=TIMEOUT)
        images = await ImageClient(channel).list()
    states = [pb.ContainerState.Name(each.state) for each in containers.containers]
    return RuntimeStatus(
        version=version.runtime_version,
        conditions=[
            Condition(each.type, each.status, each.reason, each.message) for each in status.status.conditions
        ],
        info={key: msgspec.json.decode(value) for key, value in status.info.items()},
        pods=[_pod(each) for each in pods.items],
        containers={
            state.removeprefix("CONTAINER_").lower(): states.count(state) for state in sorted(set(states))
        },
        images=len(images),
        image_bytes=sum(image.size for image in images),
    )


def _image(image: pb.Image) -> Image:
    return Image(
        id=ImageId(image.id),
        tags=tuple(image.repo_tags),
        digests=tuple(image.repo_digests),
        size=image.size,
        pinned=image.pinned,
    )


def _pod(sandbox: pb.PodSandbox) -> Pod:
    state = "Ready" if sandbox.state == pb.SANDBOX_READY else "NotReady"
    metadata = sandbox.metadata
    return Pod(sandbox.id, metadata.namespace, metadata.name, state, sandbox.created_at)


class RunningPod(msgspec.Struct, frozen=True):
    """A pod that is ready; `containers` has the annotations of each one that has not exited, by its id."""

    id: str
    namespace: str
    name: str
    containers: dict[str, dict[str, str]]


class RuntimeClient:
    """A client connected to a daemon; see `runtime_client`. Errors are PvecriError with the daemon's message."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = cri_pb2_grpc.RuntimeServiceStub(channel)  # type: ignore[no-untyped-call]

    async def running_pods(self) -> list[RunningPod]:
        """The pods that are ready."""
        with _errors():
            pods = await self._stub.ListPodSandbox(pb.ListPodSandboxRequest(), timeout=TIMEOUT)
            containers = await self._stub.ListContainers(pb.ListContainersRequest(), timeout=TIMEOUT)
        return [
            RunningPod(
                id=pod.id,
                namespace=pod.metadata.namespace,
                name=pod.metadata.name,
                containers={
                    each.id: dict(each.annotations)
                    for each in containers.containers
                    if each.pod_sandbox_id == pod.id and each.state != pb.CONTAINER_EXITED
                },
            )
            for pod in pods.items
            if pod.state == pb.SANDBOX_READY
        ]

    async def stop_container(self, container: str, grace: float) -> None:
        """Send a container its stop signal, and SIGKILL after `grace` seconds; waits for its end. Idempotent."""
        request = pb.StopContainerRequest(container_id=container, timeout=int(grace))
        with _errors():
            await self._stub.StopContainer(request, timeout=grace + TIMEOUT)

    async def stop_pod(self, pod: str) -> None:
        """Stop a pod; kills its containers. Idempotent."""
        with _errors():
            await self._stub.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod), timeout=STOP_TIMEOUT)


@asynccontextmanager
async def runtime_client(path: Path) -> AsyncIterator[RuntimeClient]:
    """A client of the daemon that serves on the unix socket `path`."""
    async with grpc.aio.insecure_channel(f"unix://{path}") as channel:
        yield RuntimeClient(channel)


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[ImageClient]:
    """A client of the daemon that serves on the unix socket `path`."""
    # The socket's mode, 0600, is what keeps others out.
    async with grpc.aio.insecure_channel(f"unix://{path}") as channel:
        yield ImageClient(channel)


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise PvecriError(error.details() or error.code().name) from error
