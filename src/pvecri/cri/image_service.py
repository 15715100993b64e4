# SPDX-License-Identifier: Apache-2.0
"""ImageService: one method for each CRI call, named after it. A call that has no method is UNIMPLEMENTED."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence

from pvecri.cri import requests, responses
from pvecri.cri.answers import Answers
from pvecri.cri.chunks import chunks
from pvecri.cri.filters import given
from pvecri.cri.proto import cri_pb2 as pb
from pvecri.cri.translated import Translated
from pvecri.images.manager import ImageManager
from pvecri.model import Image


class ImageService:
    """Passes every call to the Image Manager."""

    def __init__(self, images: ImageManager) -> None:
        self._images = images
        self._answers = Answers(lambda: images.generation)
        self._lists = Translated(_list_of)
        self._statuses = Translated(_status)

    async def list_images(self, request: pb.ListImagesRequest) -> bytes:
        """ListImages; a filter with an image returns that image or none."""

        def build() -> bytes:
            known = self._found(request.filter)
            return b"".join(self._lists.messages(known, alive=self._images.count))

        return self._answers.answer(request, build)

    async def stream_images(self, request: pb.StreamImagesRequest) -> AsyncIterator[pb.StreamImagesResponse]:
        """StreamImages."""
        for chunk in chunks(map(responses.image, self._found(request.filter))):
            yield pb.StreamImagesResponse(images=chunk)

    def _found(self, wanted: pb.ImageFilter) -> Sequence[Image]:
        if wanted.image.image:
            found = self._images.find(wanted.image.image)
            return [found] if found else []
        return self._images.list()

    async def image_status(self, request: pb.ImageStatusRequest) -> pb.ImageStatusResponse | bytes:
        """ImageStatus; for an image that is not in the store the response is empty, as the CRI requires.

        Verbose info is images/inspection.py's: `chainID` and `imageSpec`, the image's config, as containerd's,
        and `labels` as CRI-O's, for an artifact `artifactType` and `manifest`; layers, and who uses the image.
        """
        image = self._images.find(_reference(request.image))
        if image is None:
            return pb.ImageStatusResponse()
        if not request.verbose:
            return self._statuses.message(image, alive=self._images.count)
        response = pb.ImageStatusResponse(image=responses.image(image))
        response.info["info"] = json.dumps(await self._images.inspect(image.id))
        return response

    async def pull_image(self, request: pb.PullImageRequest) -> pb.PullImageResponse:
        """PullImage."""
        auth = requests.registry_auth(request.auth) if request.HasField("auth") else None
        image = await self._images.pull(_reference(request.image), auth)
        # The id, not a digest: a kubelet passes it to CreateContainer and RemoveImage.
        return pb.PullImageResponse(image_ref=image.id)

    async def remove_image(self, request: pb.RemoveImageRequest) -> pb.RemoveImageResponse:
        """RemoveImage."""
        await self._images.remove(_reference(request.image))
        return pb.RemoveImageResponse()

    async def image_fs_info(self, _: pb.ImageFsInfoRequest) -> pb.ImageFsInfoResponse:
        """ImageFsInfo: images, and separately the writable layers of containers."""
        usage = await self._images.usage()
        return pb.ImageFsInfoResponse(
            image_filesystems=[responses.filesystem(usage.images)],
            container_filesystems=[responses.filesystem(usage.containers)],
        )


def _list_of(image: Image) -> bytes:
    return pb.ListImagesResponse(images=[responses.image(image)]).SerializeToString()


def _status(image: Image) -> bytes:
    return pb.ImageStatusResponse(image=responses.image(image)).SerializeToString()


def _reference(spec: pb.ImageSpec) -> str:
    return given("image.image", spec.image)
