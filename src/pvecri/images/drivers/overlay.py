# SPDX-License-Identifier: Apache-2.0
"""Layers as directories, root filesystems as overlayfs mounts of them. For any local filesystem.

Each layer is a directory of `layers` (drivers/area.py), named by its diff ID, with whiteouts in overlayfs' form.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from pvecri.errors import FailedPrecondition
from pvecri.images.drivers import parents
from pvecri.images.drivers.area import Area
from pvecri.images.drivers.base import LayerKey, Owner
from pvecri.images.drivers.checks import unreadable
from pvecri.images.drivers.hidden_links import hidden_links
from pvecri.images.drivers.overlay_roots import OverlayRoots
from pvecri.images.usage import Meter, Usage
from pvecri.model import ContainerId


class OverlayDriver:
    """The driver below `root`."""

    stacked = False

    def __init__(self, root: Path) -> None:
        self.root = root
        self._area = Area(root)
        self._roots = OverlayRoots(self._area)
        self._meter = Meter()

    def setup(self) -> None:
        self._area.setup()
        check_storage(self._area)

    def layer_key(self, diff_ids: Sequence[str]) -> LayerKey:
        return LayerKey(diff_ids[-1].removeprefix("sha256:"))

    def layers(self) -> set[LayerKey]:
        return {LayerKey(path.name) for path in self._area.layers.iterdir()}

    def begin_layer(self, key: LayerKey, parent: LayerKey | None) -> Path:
        return self._area.fresh()

    def commit_layer(self, key: LayerKey, directory: Path) -> None:
        try:
            directory.rename(self._area.layers / key)
        except OSError as error:
            if error.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
                raise  # else another pull has committed the layer meanwhile
            self._area.discard(directory)

    def abort_layer(self, directory: Path) -> None:
        self._area.discard(directory)

    def layer_usage(self, key: LayerKey) -> Usage | None:
        return None

    def check_layer(self, key: LayerKey) -> str:
        return unreadable(self._area.layers / key)  # all that can be checked: a directory has no digest

    def layer_tree(self, key: LayerKey) -> Path:
        return self._area.layers / key

    def hidden_links(self, layers: Sequence[tuple[LayerKey, frozenset[str]]]) -> dict[str, str]:
        left_out = layers[-1][1] - {"."}
        return hidden_links(self._extracted(layers)) if left_out else {}

    def parents_layer(self, layers: Sequence[tuple[LayerKey, frozenset[str]]]) -> LayerKey | None:
        directories = parents.inherited(self._extracted(layers))
        if not directories:
            return None
        key = LayerKey(hashlib.sha256("\n".join(parents.serialized(directories)).encode()).hexdigest())
        directory = self.begin_layer(key, None)
        parents.make(directory, directories)
        self.commit_layer(key, directory)
        return key

    def remove_layer(self, key: LayerKey) -> None:
        self._area.discard(self._area.layers / key)

    def create_rootfs(self, container: ContainerId, layers: Sequence[LayerKey], owner: Owner) -> None:
        self._roots.create(container, [self.layer_tree(key) for key in layers], owner)

    def mount_rootfs(self, container: ContainerId, layers: Sequence[LayerKey], userns: Path | None) -> Path:
        return self._roots.mount(container, [self.layer_tree(key) for key in layers], userns)

    def unmount_rootfs(self, container: ContainerId) -> None:
        self._roots.unmount(container)

    def remove_rootfs(self, container: ContainerId) -> None:
        self._roots.remove(container)
        self._meter.forget(self._roots.upper(container))

    def rootfs_ids(self) -> set[ContainerId]:
        return self._area.homes()

    def written(self, container: ContainerId) -> Usage:
        return self._meter.measure(self._roots.upper(container))

    def writable_layer(self, container: ContainerId) -> Path:
        return self._roots.upper(container)

    def collect_garbage(self) -> None:
        self._area.empty_trash()

    def sync(self) -> None:
        self._area.sync()

    def _extracted(self, layers: Sequence[tuple[LayerKey, frozenset[str]]]) -> list[parents.ExtractedLayer]:
        return [parents.ExtractedLayer(self.layer_tree(key), implicit) for key, implicit in layers]


def check_storage(area: Area) -> None:
    """FailedPrecondition if the filesystem has no trusted.* attributes, which overlayfs keeps its marks in."""
    try:
        os.setxattr(area.new, "trusted.overlay.pvecri", b"y")
        os.removexattr(area.new, "trusted.overlay.pvecri")
    except OSError as error:
        raise FailedPrecondition(
            f"{area.root}: {error.strerror}: its filesystem does not support overlayfs layers; "
            "set images.root to a directory on another one"
        ) from error
