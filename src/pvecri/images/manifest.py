# SPDX-License-Identifier: Apache-2.0
"""Manifests and image configs (OCI image-spec 1.1: manifest.md, config.md), from untrusted bytes to values."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Final, TypeVar

import msgspec

from pvecri.errors import InternalError
from pvecri.model import ImageConfig, Value

MAX_DOCUMENT: Final = 8 << 20
"""The largest manifest or config, in bytes; OCI distribution-spec asks for 4 MB at least."""

LAYER_TYPES: Final = frozenset(
    {
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
    }
)
CONFIG_TYPES: Final = frozenset(
    {
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.docker.container.image.v1+json",
    }
)
OLD_CONFIG_TYPES: Final = frozenset({"application/octet-stream", "application/json", "text/html", ""})
"""What registries have had in manifests since 2016 (distribution issue 1621); Docker takes them as images."""

_T = TypeVar("_T")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class BadImage(InternalError):
    """An image's content is malformed, has a wrong digest, or is of a type that cannot be run."""


class Layer(Value, frozen=True):
    """A layer of an image: the digest and size of its compressed blob, and its diff ID.

    With `file`, a path, a layer of an artifact: the blob itself becomes this file, and `diff_id` identifies path
    and content; it is not a digest.
    """

    digest: str
    diff_id: str
    size: int
    file: str = ""

    @property
    def extracted_digest(self) -> str:
        """The digest of what is extracted: of the uncompressed archive, or of the blob if it becomes a file."""
        return self.digest if self.file else self.diff_id


class Content(Value, frozen=True):
    """A manifest and its config, checked against each other. `layers` lowest first.

    `id` is the digest of the config; of an artifact, whose config need not be its own, that of the manifest.
    """

    id: str
    config_size: int
    layers: tuple[Layer, ...]
    config: ImageConfig = ImageConfig()
    artifact_type: str = ""

    @property
    def size(self) -> int:
        """The size in bytes of the compressed layers and the config."""
        return self.config_size + sum(layer.size for layer in self.layers)


class Descriptor(Value, frozen=True, rename="camel"):
    """OCI descriptor.md."""

    digest: str
    size: int
    media_type: str = ""
    annotations: dict[str, str | None] | None = None


class Manifest(Value, frozen=True, rename="camel"):
    """An OCI image manifest, of an image or of an artifact."""

    config: Descriptor
    layers: tuple[Descriptor, ...] = ()
    artifact_type: str = ""

    @property
    def is_artifact(self) -> bool:
        """Whether it is not of a container image (manifest.md, "Guidelines for Artifact Usage").

        With the config of an image it is one, whatever its `artifactType`, unless no image can have its layers.
        """
        if self.config.media_type in CONFIG_TYPES:
            foreign = any(layer.media_type not in LAYER_TYPES for layer in self.layers)
            return bool(self.artifact_type) and foreign
        return bool(self.artifact_type) or self.config.media_type not in OLD_CONFIG_TYPES


class _ManifestFile(Value, frozen=True, rename="camel"):
    config: Descriptor
    layers: tuple[Descriptor, ...] | None = ()
    artifact_type: str | None = ""


class _Index(Value, frozen=True):
    manifests: tuple[Descriptor, ...]


_Strings = tuple[str | None, ...] | str | None
"""A list, or one string for a list of one: old builders wrote both, and Docker reads both (its strslice)."""


class _RunConfig(Value, frozen=True, rename="pascal"):
    """The `config` object. Go reads null as the zero value of every type, and writes it for empty ones."""

    user: str | None = ""
    env: _Strings = ()
    entrypoint: _Strings = ()
    cmd: _Strings = ()
    working_dir: str | None = ""
    stop_signal: str | None = ""
    volumes: dict[str, object] | None = None
    labels: dict[str, str | None] | None = None


class _RootFs(Value, frozen=True):
    diff_ids: tuple[str, ...] | None = ()


class _ConfigFile(Value, frozen=True):
    rootfs: _RootFs | None = None
    config: _RunConfig | None = None


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def chain_id(diff_ids: Sequence[str]) -> str:
    """The identity of a stack of layers, lowest first (OCI config.md, "Layer ChainID"); empty for none."""
    chain = ""
    for diff_id in diff_ids:
        chain = digest_of(f"{chain} {diff_id}".encode()) if chain else diff_id
    return chain


def verified(data: bytes, descriptor: Descriptor, what: str) -> bytes:
    """`data`, if it has the size and digest of the descriptor; else BadImage."""
    if len(data) != descriptor.size:
        raise BadImage(f"{what} {descriptor.digest} has {len(data)} bytes, expected {descriptor.size}")
    if digest_of(data) != descriptor.digest:
        raise BadImage(f"{what} {descriptor.digest} has the digest {digest_of(data)}")
    return data


def parse_layout(data: bytes) -> Descriptor:
    """The only manifest of a layout's index.json; BadImage if there are others."""
    manifests = _decode(data, _Index, "index.json").manifests
    if len(manifests) != 1:
        raise BadImage(f"index.json names {len(manifests)} manifests, expected one")
    return _checked(manifests[0], "manifest")


def parse_manifest(data: bytes) -> Manifest:
    """The manifest of an image or of an artifact; BadImage for an image's layers of unsupported media types."""
    file = _decode(data, _ManifestFile, "manifest")
    manifest = Manifest(
        config=_checked(file.config, "config"), layers=file.layers or (), artifact_type=file.artifact_type or ""
    )
    for layer in manifest.layers:
        if _checked(layer, "layer").media_type not in LAYER_TYPES and not manifest.is_artifact:
            raise BadImage(f"layer {layer.digest} has the media type {layer.media_type!r}, which is not supported")
    return manifest


def parse_config(data: bytes, manifest: Manifest) -> Content:
    """The image of a config and a manifest; BadImage if they have different numbers of layers.

    The digest of `data` is not compared with the manifest's: after a conversion by skopeo they differ.
    """
    # Go's decoder replaces what is not UTF-8, such as a maintainer's name in Latin-1, and so do we.
    file = _decode(data.decode(errors="replace"), _ConfigFile, "config")
    diff_ids = (file.rootfs and file.rootfs.diff_ids) or ()
    if len(diff_ids) != len(manifest.layers):
        raise BadImage(f"the config has {len(diff_ids)} layers and the manifest {len(manifest.layers)}")
    for diff_id in diff_ids:
        if not _DIGEST.fullmatch(diff_id):
            raise BadImage(f"the config's diff ID {diff_id!r} is not a sha256 digest")
    layers = zip(manifest.layers, diff_ids, strict=True)
    return Content(
        id=digest_of(data),
        config_size=len(data),
        layers=tuple(Layer(digest=blob.digest, diff_id=diff_id, size=blob.size) for blob, diff_id in layers),
        config=_image_config(file.config or _RunConfig()),
    )


def run_config(document: object) -> ImageConfig:
    """How an image's config says that it is run; the document was read by `parse_config` before."""
    return _image_config(msgspec.convert(document, _ConfigFile).config or _RunConfig())


def wrong_diff_id(layer: Layer, found: str) -> BadImage:
    """The error of a layer whose extracted content has the digest `found`."""
    if layer.file:
        return BadImage(f"layer {layer.digest} has the digest {found}")
    return BadImage(f"layer {layer.digest} has the diff ID {found}, but the config has {layer.diff_id}")


def _image_config(run: _RunConfig) -> ImageConfig:
    return ImageConfig(
        user=run.user or "",
        env=_strings(run.env),
        entrypoint=_strings(run.entrypoint),
        cmd=_strings(run.cmd),
        working_dir=run.working_dir or "",
        stop_signal=run.stop_signal or "",
        volumes=tuple(sorted(run.volumes or ())),
        labels={name: value or "" for name, value in (run.labels or {}).items()},
    )


def _strings(value: _Strings) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(each or "" for each in value or ())


def _checked(descriptor: Descriptor, what: str) -> Descriptor:
    if not _DIGEST.fullmatch(descriptor.digest):
        raise BadImage(f"the {what}'s digest {descriptor.digest!r} is not a sha256 digest")
    if descriptor.size < 0 or (what != "layer" and descriptor.size > MAX_DOCUMENT):
        raise BadImage(f"{what} {descriptor.digest} claims {descriptor.size} bytes; the limit is {MAX_DOCUMENT}")
    return descriptor


def _decode(data: bytes | str, kind: type[_T], what: str) -> _T:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        # msgspec names fields by their JSONPath, `$.config.size`.
        raise BadImage(f"the {what} cannot be read: {str(error).replace('`$.', '`')}") from error
