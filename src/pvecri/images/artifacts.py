# SPDX-License-Identifier: Apache-2.0
"""OCI artifacts: which file each layer becomes (image-spec manifest.md, "Guidelines for Artifact Usage").

A layer's blob becomes a file as it is, whatever its media type: archives are not extracted, as in CRI-O. Names are
hostile input. The files are created by a process that is confined to their directory (unpacking/worker.py), so a
name that leads elsewhere is refused here only to be reported.
"""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath
from typing import Final

from pvecri.images.manifest import BadImage, Content, Descriptor, Layer, Manifest, digest_of

MAX_FILES: Final = 400
"""Each file is a layer of the rootfs driver, and overlayfs mounts at most 500 of them (OVL_MAX_STACK)."""
EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"
"""The media type of the layer that an artifact without layers has, and of an absent config."""
NAMES: Final = ("org.opencontainers.image.title", "org.cncf.model.filepath")
"""The annotations that name a layer's file, by precedence: OCI annotations.md; ModelPack model-spec."""

_MAX_PATH: Final = 4095
_MAX_NAME: Final = 255


def parse_artifact(data: bytes, manifest: Manifest) -> Content:
    """The artifact of a manifest, whose bytes are `data`. BadImage for a file name that cannot be used."""
    layers = dict[str, Layer]()
    for described in manifest.layers:
        name = _name(described)
        if described.media_type == EMPTY_TYPE and name is None:
            continue
        file = _path(described, name) if name else described.digest.replace(":", "-")
        known = layers.setdefault(file, _layer(described, file))
        if known.digest != described.digest:
            raise BadImage(f"the layers {known.digest} and {described.digest} have the same file name {file!r}")
    _check_directories(layers)
    if len(layers) > MAX_FILES:
        raise BadImage(f"the artifact has {len(layers)} files; at most {MAX_FILES} are supported")
    return Content(
        id=digest_of(data),
        config_size=manifest.config.size,
        layers=tuple(layers.values()),
        artifact_type=manifest.artifact_type or manifest.config.media_type,
    )


def _layer(described: Descriptor, file: str) -> Layer:
    # Letters and digits, and never equal to an image's diff ID, for those begin with sha256.
    identity = hashlib.sha256(f"{described.digest} {file}".encode()).hexdigest()
    return Layer(digest=described.digest, diff_id=f"file{identity}", size=described.size, file=file)


def _name(described: Descriptor) -> str | None:
    annotations = described.annotations or {}
    return next((name for key in NAMES if (name := annotations.get(key))), None)


def _path(described: Descriptor, name: str) -> str:
    """`name` without empty parts and dots; BadImage if it is absolute, leads upwards or is no file name."""
    path = PurePosixPath(name)
    problem = ""
    if path.is_absolute():
        problem = "is absolute"
    elif ".." in path.parts:
        problem = "has a .. in it"
    elif not path.parts:
        problem = "is not a file's name"
    elif not name.isprintable():
        problem = "has control characters"
    elif len(name.encode()) > _MAX_PATH or any(len(part.encode()) > _MAX_NAME for part in path.parts):
        problem = "is too long"
    if problem:
        raise BadImage(f"layer {described.digest}: its file name {name[:_MAX_NAME]!r} {problem}")
    return str(path)


def _check_directories(files: dict[str, Layer]) -> None:
    for file in files:
        for parent in PurePosixPath(file).parents:
            if str(parent) in files:
                raise BadImage(f"the artifact has the file {file!r}, but {str(parent)!r} is a file, too")
