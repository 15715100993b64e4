# SPDX-License-Identifier: Apache-2.0
"""Layers as ZFS datasets, each a clone of its parent's with the layer applied; root filesystems as clones.

    <dataset>/layers/<chain ID>@layer   an image's files up to this layer
    <dataset>/new/<random>              a layer being extracted
    <dataset>/rootfs/<container>        the container's clone of its topmost layer
    <dataset>/trash/<random>            to be destroyed, once it has no clones any more

Datasets have the mount point `legacy`, and are mounted below `root` while they are used. The commands of zfs(8)
that this needs are create, clone, snapshot, rename, destroy, list and get.
"""

from __future__ import annotations

import errno
import secrets
from collections.abc import Sequence
from pathlib import Path

from pvecri.errors import CommandError, FailedPrecondition
from pvecri.images.drivers.base import COMMAND_TIMEOUT, LayerKey, Owner
from pvecri.images.drivers.trees import TreeDriver, mount_tree
from pvecri.images.usage import Usage
from pvecri.linux import mounts, programs
from pvecri.model import ContainerId

# xattr=sa: in the inode, not in a hidden directory for each file.
_PROPERTIES = ("-o", "mountpoint=legacy", "-o", "xattr=sa", "-o", "acltype=posixacl")


class ZfsDriver(TreeDriver):
    """The driver on `dataset`, with mount points below `root`. `limit`, in bytes, is the property `quota`."""

    def __init__(self, root: Path, dataset: str, *, limit: int = 0) -> None:
        super().__init__(root, limit=limit)
        self._dataset = dataset

    def setup(self) -> None:
        try:
            existing = self._list(self._dataset)
        except (CommandError, FileNotFoundError) as error:
            # No such dataset, or no zfs(8): creating it tells the two apart.
            existing = self._create_base(error)
        for part in ("layers", "new", "rootfs", "trash"):
            if f"{self._dataset}/{part}" not in existing:
                _zfs("create", f"{self._dataset}/{part}")
        for uncommitted in self._area.new.glob("*"):
            # A mount point cannot be renamed to the trash (EBUSY).
            mounts.detach(uncommitted)
        self._area.setup()
        for name in self._children("new"):
            self._discard(f"new/{name}")

    def layers(self) -> set[LayerKey]:
        return {LayerKey(name) for name in self._children("layers")}

    def begin_layer(self, key: LayerKey, parent: LayerKey | None) -> Path:
        directory = self._area.fresh()
        name = f"new/{directory.name}"
        self._make(name, parent)
        _mount(f"{self._dataset}/{name}", directory)
        return directory

    def commit_layer(self, key: LayerKey, directory: Path) -> None:
        # Detached: between fork(2) and execve(2) of another thread's child a file below may be open (EBUSY).
        mounts.umount(directory, detach=True)
        name = f"new/{directory.name}"
        # The snapshot is renamed with its dataset, so a dataset below `layers` is complete.
        _zfs("snapshot", f"{self._dataset}/{name}@layer")
        try:
            _zfs("rename", f"{self._dataset}/{name}", f"{self._dataset}/layers/{key}")
        except CommandError:
            # If the layer is there, another pull has committed it meanwhile.
            if key not in self.layers():
                raise
            self._discard(name)
        directory.rmdir()

    def abort_layer(self, directory: Path) -> None:
        if directory.exists():
            mounts.detach(directory)
            self._discard(f"new/{directory.name}")
            self._area.discard(directory)

    def check_layer(self, key: LayerKey) -> str:
        """ZFS checks its data itself (zpool-scrub(8))."""
        return ""

    def remove_layer(self, key: LayerKey) -> None:
        if key in self.layers():
            self._discard(f"layers/{key}")

    def create_rootfs(self, container: ContainerId, layers: Sequence[LayerKey], owner: Owner) -> None:
        if container in self.rootfs_ids():
            raise FileExistsError(errno.EEXIST, "has a root filesystem already", str(self._area.home(container)))
        home = self._area.fresh_home(owner)
        try:
            (home / "w").mkdir(mode=0o700)
            (home / "w/tree").mkdir()
            # Without a dataset it is what a crash left of an earlier attempt.
            self._area.discard(self._area.home(container))
            # Not refquota, which also counts the files that a clone shares with its image.
            options = ("-o", f"quota={self._limit}") if self._limit else ()
            self._make(f"rootfs/{container}", layers[-1] if layers else None, *options)
            self._area.publish_home(home, container)
        finally:
            self._area.discard(home)

    def mount_rootfs(self, container: ContainerId, layers: Sequence[LayerKey], userns: Path | None) -> Path:
        home = self._area.home(container)
        target, tree = home / "root", home / "w/tree"
        if not mounts.is_mountpoint(target):
            if not tree.exists():
                raise FileNotFoundError(errno.ENOENT, "has no root filesystem", str(home))
            if not mounts.is_mountpoint(tree):
                _mount(f"{self._dataset}/rootfs/{container}", tree)
            mount_tree(tree, target, userns)
        return target

    def remove_rootfs(self, container: ContainerId) -> None:
        self.unmount_rootfs(container)
        if container in self.rootfs_ids():
            self._discard(f"rootfs/{container}")
        self._area.discard(self._area.home(container))

    def rootfs_ids(self) -> set[ContainerId]:
        return {ContainerId(name) for name in self._children("rootfs")}

    def written(self, container: ContainerId) -> Usage:
        try:
            used = _zfs("get", "-Hp", "-o", "value", "used", f"{self._dataset}/rootfs/{container}")
        except CommandError:
            return Usage(0, 0)  # there is no such dataset
        return Usage(int(used), 0)  # ZFS has no count of files

    def collect_garbage(self) -> None:
        # A dataset can be destroyed only after its clones; one that a process still uses, the next time.
        names = self._children("trash")
        while names:
            left = [name for name in names if not self._destroyed(f"trash/{name}")]
            if len(left) == len(names):
                break
            names = left
        self._area.empty_trash()

    def sync(self) -> None:
        # Writes every open transaction group: zpool-sync(8).
        _run("zpool", "sync", self._dataset.partition("/")[0])

    def _create_base(self, cause: Exception) -> list[str]:
        """Create the dataset. Properties of an existing one are the administrator's choice."""
        try:
            _zfs("create", *_PROPERTIES, self._dataset)
        except (CommandError, FileNotFoundError) as error:
            raise FailedPrecondition(
                f"images.dataset: {self._dataset!r} cannot be used: {cause}, nor created: {error}"
            ) from error
        return [self._dataset]

    def _make(self, name: str, parent: LayerKey | None, *options: str) -> None:
        dataset = f"{self._dataset}/{name}"
        if parent is None:
            _zfs("create", *options, dataset)
        else:
            _zfs("clone", *options, f"{self._dataset}/layers/{parent}@layer", dataset)

    def _discard(self, name: str) -> None:
        # A dataset that has clones can be renamed, but not destroyed.
        _zfs("rename", f"{self._dataset}/{name}", f"{self._dataset}/trash/{secrets.token_hex(8)}")

    def _destroyed(self, name: str) -> bool:
        try:
            _zfs("destroy", "-r", f"{self._dataset}/{name}")
        except CommandError:
            return False
        return True

    def _children(self, part: str) -> list[str]:
        top = f"{self._dataset}/{part}"
        return [name.removeprefix(f"{top}/") for name in self._list(top) if name != top]

    def _list(self, dataset: str) -> list[str]:
        return _zfs("list", "-H", "-o", "name", "-t", "filesystem", "-d", "1", dataset).splitlines()


def _mount(dataset: str, place: Path) -> None:
    # mount(8) calls mount.zfs, which passes the kernel the options of the dataset's properties.
    _run("mount", "-t", "zfs", dataset, str(place))


def _zfs(*words: str) -> str:
    return _run("zfs", *words)


def _run(*command: str) -> str:
    ended = programs.run_blocking(command, timeout=COMMAND_TIMEOUT, name=" ".join(command[:2]))
    return ended.checked().stdout.decode()
