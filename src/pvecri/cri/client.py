# SPDX-License-Identifier: Apache-2.0
"""A client of the CRI's ImageService, for the `pvecri` command: plain values in and out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import grpc

from pvecri.cri.proto import cri_pb2 as pb
from pvecri.cri.proto import cri_pb2_grpc
from pvecri.errors import PvecriError
from pvecri.model import Image, ImageId


class ImageClient:
    """A client connected to a daemon; see `connected`. Errors are PvecriError with the daemon's message."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = cri_pb2_grpc.ImageServiceStub(channel)  # type: ignore[no-untyped-call]

    async def list(self) -> tuple[Image, ...]:
        """All images, with the fields that the CRI has."""
        with _errors():
            response = await self._stub.ListImages(pb.ListImagesRequest())
        return tuple(
            Image(
                id=ImageId(image.id),
                tags=tuple(image.repo_tags),
                digests=tuple(image.repo_digests),
                size=image.size,
                pinned=image.pinned,
            )
            for image in response.images
        )

    async def pull(self, reference: str) -> ImageId:
        """Pull an image; returns its id."""
        with _errors():
            response = await self._stub.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=reference)))
        return ImageId(response.image_ref)

    async def remove(self, reference: str) -> None:
        """Remove an image. Idempotent."""
        with _errors():
            await self._stub.RemoveImage(pb.RemoveImageRequest(image=pb.ImageSpec(image=reference)))


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
