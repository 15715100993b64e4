# SPDX-License-Identifier: Apache-2.0
"""Images."""

from __future__ import annotations

from pvecri.model.base import ImageId, Value


class ImageConfig(Value, frozen=True):
    """The `config` object of an image's config (OCI image-spec, config.md)."""

    user: str = ""
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = ""
    stop_signal: str = ""
    volumes: tuple[str, ...] = ()
    labels: dict[str, str] = {}


class Image(Value, frozen=True):
    """An image or an OCI artifact in the store.

    `tags` and `digests` are full references (`docker.io/library/busybox:1.36`,
    `docker.io/library/busybox@sha256:…`); `diff_ids` are its layers' content digests, lowest first;
    `size` is the bytes of the compressed layers and the config, the CRI's definition. With `artifact_type`, a
    media type, it is an artifact: files without a config, for volumes only.
    """

    id: ImageId
    tags: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    size: int = 0
    diff_ids: tuple[str, ...] = ()
    config: ImageConfig = ImageConfig()
    pinned: bool = False
    artifact_type: str = ""


class RegistryAuth(Value, frozen=True):
    """Credentials for one pull (CRI AuthConfig); `repr` hides them."""

    username: str = ""
    password: str = ""
    auth: str = ""
    server_address: str = ""
    identity_token: str = ""
    registry_token: str = ""

    # Values appear in tracebacks, which are logged.
    def __repr__(self) -> str:
        return f"RegistryAuth(username={self.username!r}, …)"


class FilesystemUsage(Value, frozen=True):
    """CRI FilesystemUsage: usage of the filesystem that contains `mountpoint`."""

    mountpoint: str
    used_bytes: int
    inodes_used: int
    timestamp: int
