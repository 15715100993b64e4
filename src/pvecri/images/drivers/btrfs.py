# SPDX-License-Identifier: Apache-2.0
"""Layers as btrfs subvolumes, each a snapshot of its parent's with the layer applied; a snapshot a container.

    layers/<chain id>           read-only subvolume: all of an image up to this layer
    rootfs/<container>/w/tree   the container's snapshot of its topmost layer

A container reads its files as from any directory, with no layer between; snapshots share what is not changed.
"""

from __future__ import annotations

import errno
import hashlib
import secrets
from collections.abc import Sequence
from pathlib import Path

from pvecri.errors import FailedPrecondition
from pvecri.images.drivers import trees
from pvecri.images.drivers.area import Area
from pvecri.images.drivers.base import LayerKey, Owner
from pvecri.images.drivers.checks import unreadable
from pvecri.images.usage import Usage
from pvecri.linux import btrfs, mounts
from pvecri.model import ContainerId


class BtrfsDriver:
    """The driver below `root`. With `limit`, a container may write that many bytes; quotas must be on then."""

    stacked = True

    def __init__(self, root: Path, *, limit: int = 0) -> None:
        self.root = root
        self._area = Area(root)
        self._limit = limit

    def setup(self) -> None:
        self._area.root.mkdir(mode=0o711, parents=True, exist_ok=True)
        if not btrfs.is_btrfs(self._area.root):
            raise FailedPrecondition(
                f"{self._area.root} is not on btrfs; images.root or images.storage names the place, "
                "images.driver another kind of storage"
            )
        self._area.setup()
        if self._limit:
            self._check_quotas()

    def layer_key(self, diff_ids: Sequence[str]) -> LayerKey:
        return chain_key(diff_ids)

    def layers(self) -> set[LayerKey]:
        return {LayerKey(path.name) for path in self._area.layers.iterdir()}

    def begin_layer(self, key: LayerKey, parent: LayerKey | None) -> Path:
        place = self._area.new / secrets.token_hex(8)
        self._make_tree(place, [parent] if parent else [])
        return place

    def commit_layer(self, key: LayerKey, directory: Path) -> None:
        """Made read-only where it is to stay, for a read-only subvolume cannot be moved."""
        place = self._area.layers / key
        try:
            directory.rename(place)
        except OSError as error:
            if error.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
                raise
            self._area.discard(directory)
        else:
            btrfs.set_readonly(place, readonly=True)

    def abort_layer(self, directory: Path) -> None:
        self._area.discard(directory)

    def layer_usage(self, key: LayerKey) -> Usage | None:
        return None

    def check_layer(self, key: LayerKey) -> str:
        """Reading verifies the checksums of btrfs."""
        return unreadable(self._area.layers / key)

    def parents_layer(self, layers: Sequence[tuple[LayerKey, frozenset[str]]]) -> LayerKey | None:
        return None

    def remove_layer(self, key: LayerKey) -> None:
        place = self._area.layers / key
        if place.exists():
            btrfs.set_readonly(place, readonly=False)
            self._area.discard(place)

    def create_rootfs(self, container: ContainerId, layers: Sequence[LayerKey], owner: Owner) -> None:
        home = self._area.fresh_home(owner)
        try:
            (home / "w").mkdir(mode=0o700)
            tree = home / "w/tree"
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
            trees.show(home / "w/tree", target, userns)
        return target

    def unmount_rootfs(self, container: ContainerId) -> None:
        mounts.umount_below(self._area.home(container))

    def remove_rootfs(self, container: ContainerId) -> None:
        self.unmount_rootfs(container)
        self._area.discard(self._area.home(container))

    def rootfs_ids(self) -> set[ContainerId]:
        return self._area.homes()

    def written(self, container: ContainerId) -> Usage:
        """As of the last commit of the filesystem, half a minute ago at most."""
        try:
            found = btrfs.written(self._area.home(container) / "w/tree")
        except FileNotFoundError:
            return Usage(0, 0)
        return Usage(found.bytes, found.inodes)

    def writable_layer(self, container: ContainerId) -> Path:
        raise trees.no_writable_layer(container, "btrfs")

    def collect_garbage(self) -> None:
        for discarded in self._area.trash.iterdir():
            for place in (discarded, discarded / "w/tree"):
                if place.exists() and btrfs.is_subvolume(place):
                    btrfs.delete_subvolume(place)
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
        """Turning them on is the administrator's choice: it changes the whole filesystem."""
        probe = self._area.new / secrets.token_hex(8)
        btrfs.create_subvolume(probe)
        try:
            btrfs.limit_written(probe, self._limit)
        except OSError as error:
            raise FailedPrecondition(
                f"images.writable_layer_size: {error.strerror}: quotas are not enabled on {self._area.root}; "
                f"`btrfs quota enable {self._area.root}` does it"
            ) from error
        finally:
            btrfs.delete_subvolume(probe)


def chain_key(diff_ids: Sequence[str]) -> LayerKey:
    """The key of a layer on top of all those below it: the OCI ChainID (image-spec, config.md), or a part's."""
    chain = diff_ids[0]
    for diff_id in diff_ids[1:]:
        chain = f"sha256:{hashlib.sha256(f'{chain} {diff_id}'.encode()).hexdigest()}"
    return LayerKey(chain.removeprefix("sha256:"))
