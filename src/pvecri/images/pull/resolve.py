# SPDX-License-Identifier: Apache-2.0
"""First stage of a pull: from a reference to the manifest for this platform, and to what the registry calls it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from pvecri.images import manifest as manifests
from pvecri.images.manifest import Manifest
from pvecri.images.pull.repeat import repeated
from pvecri.images.reference import Reference
from pvecri.images.registry.processes import Workers
from pvecri.images.registry.proxy import ImageProxy
from pvecri.images.registry.skopeo import Skopeo
from pvecri.model import RegistryAuth

_POLICY_IN_PROXY: Final = (0, 2, 6)
"""The version of the proxy's protocol from which on OpenImage applies the signature policy."""


@dataclass(frozen=True)
class Resolved:
    """An image that a proxy has opened under `number`.

    `name` has skopeo's transport, such as `docker://…`. `data` is the manifest for this platform, always OCI's;
    `digest` is that of the manifest as the registry has it, which differs if the proxy converted Docker's.
    """

    proxy: ImageProxy
    number: int
    name: str
    reference: Reference
    auth: RegistryAuth | None
    digest: str
    data: bytes

    @property
    def is_remote(self) -> bool:
        return self.name.startswith("docker://")

    @property
    def is_converted(self) -> bool:
        return manifests.digest_of(self.data) != self.digest

    async def config(self, manifest: Manifest) -> bytes:
        """The config that the manifest names, byte by byte; BadImage if it is another one."""
        named = manifest.config
        data = await repeated(
            self.reference,
            f"config {named.digest}",
            lambda: self.proxy.document(self.number, named.digest, named.size),
        )
        return manifests.verified(data, named, "config")

    async def converted_config(self) -> bytes:
        """The config that belongs to `data`, as the proxy converted it."""
        return await repeated(self.reference, "config", lambda: self.proxy.config(self.number))


@dataclass(frozen=True)
class Original:
    """The image as the registry has it: the digest of its index or manifest, and this platform's manifest."""

    digest: str
    manifest: Manifest


@asynccontextmanager
async def resolve(
    workers: Workers, name: str, reference: Reference, auth: RegistryAuth | None
) -> AsyncIterator[Resolved]:
    """Open the image that `name` means now. All content is fetched of it, so a tag that moves cannot mix two."""
    async with workers.opened(name, reference, auth) as (proxy, number):
        # For its conversion skopeo fetches the config, too.
        digest, data = await repeated(reference, "manifest", lambda: proxy.manifest(number))
        yield Resolved(proxy, number, name, reference, auth, digest, data)


async def find_original(skopeo: Skopeo, image: Resolved) -> Original:
    """Fetch what the proxy does not hand out: the index, and the manifest before its conversion.

    If the tag has moved since `resolve`, the image goes by the digest of its own manifest.
    """
    reference, digest, data = image.reference, image.reference.digest, image.data
    if not image.is_remote:
        data = await skopeo.manifest_of(image.name) if image.is_converted else data
        return Original(image.digest, manifests.parse_manifest(data))
    if not digest:
        top = await skopeo.manifest(reference, image.auth)
        digest = manifests.digest_of(top)
        if digest == image.digest:
            data = top
        elif image.digest.encode() not in top:  # an index that does not have this manifest
            digest = image.digest
    if manifests.digest_of(data) != image.digest:
        data = await skopeo.manifest(reference.at(image.digest), image.auth)
    return Original(digest, manifests.parse_manifest(data))


def policy_is_applied(skopeo: Skopeo, image: Resolved) -> bool:
    """Whether opening the image was all that the signature policy asks for."""
    return not image.is_remote or image.proxy.version >= _POLICY_IN_PROXY or skopeo.accepts_everything
