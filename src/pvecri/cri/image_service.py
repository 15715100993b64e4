# SPDX-License-Identifier: Apache-2.0
"""ImageService: one method for each CRI call, named after it. A call that has no method is UNIMPLEMENTED."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

from pvecri.cri import requests, responses
from pvecri.cri.chunks import chunks
from pvecri.cri.proto import cri_pb2 as pb
from pvecri.errors import InvalidArgument
from pvecri.images.manager import ImageManager


class ImageService:
    """Hands everything to the Image Manager."""

    def __init__(self, images: ImageManager) -> None:
        self._images = images

    async def list_images(self, request: pb.ListImagesRequest) -> pb.ListImagesResponse:
        """ListImages; a filter that names an image answers with that one or none."""
        return pb.ListImagesResponse(images=self._listed(request.filter))

    async def stream_images(self, request: pb.StreamImagesRequest) -> AsyncIterator[pb.StreamImagesResponse]:
        """StreamImages."""
        for chunk in chunks(self._listed(request.filter)):
            yield pb.StreamImagesResponse(images=chunk)

    def _listed(self, wanted: pb.ImageFilter) -> list[pb.Image]:
        if wanted.image.image:
            found = self._images.find(wanted.image.image)
            return [responses.image(found)] if found else []
        return [responses.image(image) for image in self._images.list()]

    async def image_status(self, request: pb.ImageStatusRequest) -> pb.ImageStatusResponse:
        """ImageStatus; an image that is not there is an empty answer, not an error."""
        image = self._images.find(_given(request.image))
        if image is None:
            return pb.ImageStatusResponse()
        response = pb.ImageStatusResponse(image=responses.image(image))
        if request.verbose:
            response.info["info"] = json.dumps({"diffIDs": image.diff_ids, "labels": image.config.labels})
        return response

    async def pull_image(self, request: pb.PullImageRequest) -> pb.PullImageResponse:
        """PullImage."""
        auth = requests.registry_auth(request.auth) if request.HasField("auth") else None
        image = await self._images.pull(_given(request.image), auth)
        return pb.PullImageResponse(image_ref=image.id)

    async def remove_image(self, request: pb.RemoveImageRequest) -> pb.RemoveImageResponse:
        """RemoveImage."""
        await self._images.remove(_given(request.image))
        return pb.RemoveImageResponse()

    async def image_fs_info(self, _: pb.ImageFsInfoRequest) -> pb.ImageFsInfoResponse:
        """ImageFsInfo: the images, and apart from them the containers' writable layers."""
        usage = await self._images.usage()
        return pb.ImageFsInfoResponse(
            image_filesystems=[responses.filesystem(usage.images)],
            container_filesystems=[responses.filesystem(usage.containers)],
        )


def _given(spec: pb.ImageSpec) -> str:
    if not spec.image:
        raise InvalidArgument("image.image", "must not be empty")
    return spec.image
