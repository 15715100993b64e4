# SPDX-License-Identifier: Apache-2.0
"""Layers as btrfs subvolumes, each a snapshot of its parent's with the layer applied; a snapshot a container.

    layers/<chain ID>           read-only subvolume: an image's files up to this layer
    rootfs/<container>/w/tree   the container's snapshot of its topmost layer

A container reads its files without overlayfs; snapshots share unchanged extents.
"""

from __future__ import annotations

import errno
import secrets
from collections.abc import Sequence
from pathlib import Path

from pvecri.errors import FailedPrecondition
from pvecri.images.drivers.base import LayerKey, Owner
from pvecri.images.drivers.checks import unreadable
from pvecri.images.drivers.trees import TreeDriver, mount_tree
from pvecri.images.usage import Usage
from pvecri.linux import btrfs, mounts
from pvecri.model import ContainerId


class BtrfsDriver(TreeDriver):
    """The driver below `root`. `limit` is in bytes, 0 is none; it needs quotas enabled on the filesystem."""

    def setup(self) -> None:
        self._area.root.mkdir(mode=0o711, parents=True, exist_ok=True)
        if not btrfs.is_btrfs(self._area.root):
            raise FailedPrecondition(
                f"{self._area.root} is not on btrfs; set images.root or images.storage to a btrfs filesystem, "
                "or images.driver to another driver"
            )
        self._area.setup()
        if self._limit:
            self._check_quotas()

    def layers(self) -> set[LayerKey]:
        return {LayerKey(path.name) for path in self._area.layers.iterdir()}

    def begin_layer(self, key: LayerKey, parent: LayerKey | None) -> Path:
        place = self._area.new / secrets.token_hex(8)
        self._make_tree(place, [parent] if parent else [])
        return place

    def commit_layer(self, key: LayerKey, directory: Path) -> None:
        place = self._area.layers / key
        try:
            directory.rename(place)
        except OSError as error:
            if error.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
                raise  # else another pull has committed the layer meanwhile
            self._area.discard(directory)
        else:
            btrfs.set_readonly(place, readonly=True)  # only now: a read-only subvolume cannot be renamed

    def abort_layer(self, directory: Path) -> None:
        self._area.discard(directory)

    def check_layer(self, key: LayerKey) -> str:
        return unreadable(self._area.layers / key)  # reading verifies the checksums of btrfs

    def remove_layer(self, key: LayerKey) -> None:
        place = self._area.layers / key
        if place.exists():
            # A read-only subvolume cannot be renamed to the trash.
            btrfs.set_readonly(place, readonly=False)
            self._area.discard(place)

    def create_rootfs(self, container: ContainerId, layers: Sequence[LayerKey], owner: Owner) -> None:
        home = self._area.fresh_home(owner)
        try:
            (home / "w").mkdir(mode=0o700)
            tree = home / "w/tree"
            # The topmost layer has the files of all layers below it.
            self._make_tree(tree, layers[-1:])
            if self._limit:
                btrfs.limit_written(tree, self._limit)
            self._area.publish_home(home, container)
        finally:
            self._area.discard(home)

    def mount_rootfs(self, container: ContainerId, layers: Sequence[LayerKey], userns: Path | None) -> Path:
        home = self._area.home(container)
        target = home / "root"
        if not mounts.is_mountpoint(target):
            mount_tree(home / "w/tree", target, userns)
        return target

    def remove_rootfs(self, container: ContainerId) -> None:
        self.unmount_rootfs(container)
        self._area.discard(self._area.home(container))

    def rootfs_ids(self) -> set[ContainerId]:
        return self._area.homes()

    def written(self, container: ContainerId) -> Usage:
        """As of the filesystem's last commit, by default at most 30 seconds ago (btrfs(5), commit)."""
        try:
            found = btrfs.written(self._area.home(container) / "w/tree")
        except FileNotFoundError:
            return Usage(0, 0)
        return Usage(found.bytes, found.inodes)

    def collect_garbage(self) -> None:
        for discarded in self._area.trash.iterdir():
            # A layer, or the tree of a removed root filesystem.
            for place in (discarded, discarded / "w/tree"):
                if place.exists() and btrfs.is_subvolume(place):
                    btrfs.delete_subvolume(place)  # at once, where rm(1) deletes file by file
        self._area.empty_trash()

    def sync(self) -> None:
        self._area.sync()

    def _make_tree(self, place: Path, parent: Sequence[LayerKey]) -> None:
        if parent:
            btrfs.snapshot(self._area.layers / parent[0], place)
        else:
            btrfs.create_subvolume(place)
            place.chmod(0o755)

    def _check_quotas(self) -> None:
        # Enabling them is left to the administrator: it affects the whole filesystem.
        probe = self._area.new / secrets.token_hex(8)
        btrfs.create_subvolume(probe)
        try:
            btrfs.limit_written(probe, self._limit)
        except OSError as error:
            raise FailedPrecondition(
                f"images.writable_layer_size: {error.strerror}: quotas are not enabled on {self._area.root}; "
                f"run `btrfs quota enable {self._area.root}`"
            ) from error
        finally:
            btrfs.delete_subvolume(probe)
