# SPDX-License-Identifier: Apache-2.0
"""Images."""

from __future__ import annotations

from pvecri.model.base import ImageId, Value


class ImageConfig(Value, frozen=True):
    """What an image says of how to run it (OCI image-spec, config.md, the `config` object)."""

    user: str = ""
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = ""
    stop_signal: str = ""
    volumes: tuple[str, ...] = ()
    labels: dict[str, str] = {}


class Image(Value, frozen=True):
    """An image in the store.

    `tags` and `digests` are full references (`docker.io/library/busybox:1.36`,
    `docker.io/library/busybox@sha256:…`); `diff_ids` are its layers' content digests, lowest first;
    `size` is the bytes of the compressed layers and the config, as CRI clients expect it.
    """

    id: ImageId
    tags: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    size: int = 0
    diff_ids: tuple[str, ...] = ()
    config: ImageConfig = ImageConfig()
    pinned: bool = False


class RegistryAuth(Value, frozen=True):
    """Credentials for one pull (CRI AuthConfig); `repr` shows none of them."""

    username: str = ""
    password: str = ""
    auth: str = ""
    server_address: str = ""
    identity_token: str = ""
    registry_token: str = ""

    def __repr__(self) -> str:
        return f"RegistryAuth(username={self.username!r}, …)"


class FilesystemUsage(Value, frozen=True):
    """What a store uses of the filesystem that `mountpoint` lies on."""

    mountpoint: str
    used_bytes: int
    inodes_used: int
    timestamp: int
