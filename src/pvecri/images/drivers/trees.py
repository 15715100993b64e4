# SPDX-License-Identifier: Apache-2.0
"""A whole directory tree as a container's root filesystem: a bind mount, idmapped for its user namespace.

<home>/root      the mount point
      /w/tree    the container's own writable copy of its image
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from pvecri.errors import Unimplemented
from pvecri.images.drivers.area import Area
from pvecri.images.drivers.base import LayerKey
from pvecri.images.drivers.overlay_roots import cannot_be_mapped
from pvecri.images.usage import Usage
from pvecri.linux import mounts
from pvecri.model import ContainerId


def mount_tree(tree: Path, target: Path, userns: Path | None) -> None:
    """Bind `tree` to `target`, nodev; with `userns` idmapped by that user namespace.

    Files that the container creates are stored with the image's IDs then, too.
    """
    with ExitStack() as fds:
        # Only a detached mount can be idmapped, so it is attached last.
        fd = mounts.open_tree(tree, mounts.OPEN_TREE_CLONE)
        fds.callback(os.close, fd)
        if userns is None:
            mounts.mount_setattr(fd, attributes=mounts.MOUNT_ATTR_NODEV, path=tree)
        else:
            userns_fd = os.open(userns, os.O_RDONLY | os.O_CLOEXEC)
            fds.callback(os.close, userns_fd)
            try:
                mounts.mount_setattr(fd, attributes=mounts.MOUNT_ATTR_NODEV, idmap_userns_fd=userns_fd, path=tree)
            except OSError as error:
                raise cannot_be_mapped(tree, error) from error
        mounts.move_mount(fd, target)


class TreeDriver:
    """The common part of drivers whose layers are whole trees; `limit`, in bytes, is 0 for none."""

    stacked = True

    def __init__(self, root: Path, *, limit: int = 0) -> None:
        self.root = root
        self._area = Area(root)
        self._limit = limit

    def layer_key(self, diff_ids: Sequence[str]) -> LayerKey:
        """The OCI ChainID (image-spec, config.md)."""
        chain = diff_ids[0]
        for diff_id in diff_ids[1:]:
            chain = f"sha256:{hashlib.sha256(f'{chain} {diff_id}'.encode()).hexdigest()}"
        return LayerKey(chain.removeprefix("sha256:"))

    def layer_usage(self, key: LayerKey) -> Usage | None:
        return None

    def hidden_links(self, layers: Sequence[tuple[LayerKey, frozenset[str]]]) -> dict[str, str]:
        return {}

    def parents_layer(self, layers: Sequence[tuple[LayerKey, frozenset[str]]]) -> LayerKey | None:
        return None

    def unmount_rootfs(self, container: ContainerId) -> None:
        home = self._area.home(container)
        for place in (home / "root", home / "w/tree"):
            mounts.detach(place)

    def writable_layer(self, container: ContainerId) -> Path:
        raise Unimplemented(
            f"container {container}: images.driver {self.root.name!r} does not record which files a container has "
            "changed; overlay and raw do"
        )
