# SPDX-License-Identifier: Apache-2.0
"""Images made in memory: layers from a few lines of Python, manifests of every kind."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"

PLATFORM = {"x86_64": "amd64", "aarch64": "arm64/v8"}[platform.machine()]
"""This machine's, as indexes in registries name it: ARCHITECTURE or ARCHITECTURE/VARIANT."""


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class LayerBuilder:
    """A tar archive, entry by entry. Modes, owners and the like are keyword arguments named as in TarInfo."""

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._tar = tarfile.TarFile(fileobj=self._buffer, mode="w", format=tarfile.PAX_FORMAT)

    def add(self, name: str, kind: bytes, data: bytes = b"", **attributes: Any) -> LayerBuilder:
        member = tarfile.TarInfo(name)
        member.type = kind
        member.size = len(data)
        for key, value in attributes.items():
            setattr(member, key, value)
        self._tar.addfile(member, io.BytesIO(data))
        return self

    def file(self, name: str, data: bytes | str = b"", **attributes: Any) -> LayerBuilder:
        return self.add(name, tarfile.REGTYPE, data.encode() if isinstance(data, str) else data, **attributes)

    def directory(self, name: str, mode: int = 0o755, **attributes: Any) -> LayerBuilder:
        return self.add(name, tarfile.DIRTYPE, mode=mode, **attributes)

    def symlink(self, name: str, target: str, **attributes: Any) -> LayerBuilder:
        return self.add(name, tarfile.SYMTYPE, linkname=target, **attributes)

    def hardlink(self, name: str, target: str) -> LayerBuilder:
        return self.add(name, tarfile.LNKTYPE, linkname=target)

    def device(self, name: str, major: int, minor: int, **attributes: Any) -> LayerBuilder:
        return self.add(name, tarfile.CHRTYPE, devmajor=major, devminor=minor, **attributes)

    def fifo(self, name: str, **attributes: Any) -> LayerBuilder:
        return self.add(name, tarfile.FIFOTYPE, **attributes)

    def build(self) -> bytes:
        self._tar.close()
        return self._buffer.getvalue()


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-cq"], input=data, capture_output=True, check=True).stdout


def plain(data: bytes) -> bytes:
    return data


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


_SUFFIX: dict[Callable[[bytes], bytes], str] = {plain: "", gzipped: "+gzip", zstd: "+zstd"}


@dataclass(frozen=True)
class BuiltImage:
    """What goes to a registry: the manifest or index under the tag, an index's own manifests, and the blobs."""

    manifest: bytes
    media_type: str
    blobs: tuple[bytes, ...]
    children: tuple[tuple[str, bytes], ...] = ()
    config: bytes = b""
    layers: tuple[bytes, ...] = field(default=(), repr=False)

    @property
    def digest(self) -> str:
        return digest_of(self.manifest)

    @property
    def id(self) -> str:
        return digest_of(self.config)


def build_image(
    *layers: bytes,
    compress: Callable[[bytes], bytes] = gzipped,
    docker: bool = False,
    config: dict[str, Any] | None = None,
    diff_ids: Sequence[str] | None = None,
    layer_type: str | None = None,
    config_type: str | None = None,
) -> BuiltImage:
    """An image of these archives for this machine; `diff_ids` and the media types may be told wrong."""
    blobs = [compress(layer) for layer in layers]
    document = {
        **_architecture(PLATFORM),
        "os": "linux",
        "config": config or {},
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids or map(digest_of, layers))},
    }
    config_blob = json.dumps(document).encode()
    suffix = _SUFFIX[compress].replace("+", ".") if docker else _SUFFIX[compress]
    layer_type = layer_type or (DOCKER_LAYER if docker else OCI_LAYER) + suffix
    config_type = config_type or (DOCKER_CONFIG if docker else OCI_CONFIG)
    media_type = DOCKER_MANIFEST if docker else OCI_MANIFEST
    manifest = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": _descriptor(config_blob, config_type),
        "layers": [_descriptor(blob, layer_type) for blob in blobs],
    }
    return BuiltImage(
        manifest=json.dumps(manifest).encode(),
        media_type=media_type,
        blobs=(config_blob, *blobs),
        config=config_blob,
        layers=tuple(blobs),
    )


def build_artifact(
    *files: tuple[str | None, bytes],
    artifact_type: str | None = "application/vnd.example.model",
    config: tuple[str, bytes] = (OCI_EMPTY, b"{}"),
    layer_type: str = "application/octet-stream",
) -> BuiltImage:
    """An OCI artifact of files with their names as `oras push` makes it; without files it has the empty layer."""
    layers = []
    for name, data in files:
        annotations = {} if name is None else {"annotations": {"org.opencontainers.image.title": name}}
        layers.append({**_descriptor(data, layer_type), **annotations})
    config_type, config_blob = config
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        **({} if artifact_type is None else {"artifactType": artifact_type}),
        "config": _descriptor(config_blob, config_type),
        "layers": layers or [_descriptor(b"{}", OCI_EMPTY)],
    }
    return BuiltImage(
        manifest=json.dumps(manifest).encode(),
        media_type=OCI_MANIFEST,
        blobs=(config_blob, *(data for _, data in files), *(() if files else (b"{}",))),
        config=config_blob,
        layers=tuple(data for _, data in files),
    )


def build_index(*images: tuple[str, BuiltImage], docker: bool = False) -> BuiltImage:
    """An index of images by platform, such as PLATFORM."""
    manifests = [
        {**_descriptor(image.manifest, image.media_type), "platform": {"os": "linux", **_architecture(name)}}
        for name, image in images
    ]
    media_type = DOCKER_LIST if docker else OCI_INDEX
    index = {"schemaVersion": 2, "mediaType": media_type, "manifests": manifests}
    return BuiltImage(
        manifest=json.dumps(index).encode(),
        media_type=media_type,
        blobs=tuple(blob for _, image in images for blob in image.blobs),
        children=tuple((image.media_type, image.manifest) for _, image in images),
    )


def _architecture(name: str) -> dict[str, str]:
    architecture, _, variant = name.partition("/")
    return {"architecture": architecture, "variant": variant} if variant else {"architecture": architecture}


def _descriptor(data: bytes, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}
