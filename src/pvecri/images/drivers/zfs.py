# SPDX-License-Identifier: Apache-2.0
"""Layers as ZFS datasets, each a clone of its parent's with the layer applied; root filesystems as clones.

    <dataset>/layers/<chain id>@layer   all of an image up to this layer
    <dataset>/new/<random>              a layer being unpacked
    <dataset>/rootfs/<container>        the container's clone of its topmost layer
    <dataset>/trash/<random>            to be destroyed, once nothing is a clone of it any more

Datasets have the mount point `legacy` and are mounted below `root` where and while they are needed. What zfs(8) is
asked for, and no more: create, clone, snapshot, rename, destroy, list, get.
"""

from __future__ import annotations

import errno
import secrets
from collections.abc import Sequence
from pathlib import Path

from pvecri.errors import CommandError, FailedPrecondition
from pvecri.images.drivers import trees
from pvecri.images.drivers.area import Area
from pvecri.images.drivers.base import COMMAND_TIMEOUT, LayerKey, Owner
from pvecri.images.drivers.btrfs import chain_key
from pvecri.images.usage import Usage
from pvecri.linux import mounts, programs
from pvecri.model import ContainerId

_PROPERTIES = ("-o", "mountpoint=legacy", "-o", "xattr=sa", "-o", "acltype=posixacl")


class ZfsDriver:
    """The driver on `dataset`, with mount points below `root`. With `limit`, a container may write that much."""

    stacked = True

    def __init__(self, root: Path, dataset: str, *, limit: int = 0) -> None:
        self.root = root
        self._area = Area(root)
        self._dataset = dataset
        self._limit = limit

    def setup(self) -> None:
        try:
            existing = self._list(self._dataset)
        except (CommandError, FileNotFoundError) as error:
            existing = self._create_base(error)
        for part in ("layers", "new", "rootfs", "trash"):
            if f"{self._dataset}/{part}" not in existing:
                _zfs("create", f"{self._dataset}/{part}")
        for half_made in self._area.new.glob("*"):
            mounts.umount_below(half_made)
        self._area.setup()
        for name in self._children("new"):
            self._discard(f"new/{name}")

    def layer_key(self, diff_ids: Sequence[str]) -> LayerKey:
        return chain_key(diff_ids)

    def layers(self) -> set[LayerKey]:
        return {LayerKey(name) for name in self._children("layers")}

    def begin_layer(self, key: LayerKey, parent: LayerKey | None) -> Path:
        directory = self._area.fresh()
        name = f"new/{directory.name}"
        self._make(name, parent)
        _mount(f"{self._dataset}/{name}", directory)
        return directory

    def commit_layer(self, key: LayerKey, directory: Path) -> None:
        """The snapshot goes along with the rename, so a layer that is there is complete.

        Detached, for a program that another thread starts may have a file below open for a moment.
        """
        mounts.umount(directory, detach=True)
        name = f"new/{directory.name}"
        _zfs("snapshot", f"{self._dataset}/{name}@layer")
        try:
            _zfs("rename", f"{self._dataset}/{name}", f"{self._dataset}/layers/{key}")
        except CommandError:
            if key not in self.layers():
                raise
            self._discard(name)
        directory.rmdir()

    def abort_layer(self, directory: Path) -> None:
        if directory.exists():
            mounts.umount_below(directory)
            self._discard(f"new/{directory.name}")
            self._area.discard(directory)

    def layer_usage(self, key: LayerKey) -> Usage | None:
        return None

    def check_layer(self, key: LayerKey) -> str:
        """ZFS checks its data itself (zpool-scrub(8))."""
        return ""

    def parents_layer(self, layers: Sequence[tuple[LayerKey, frozenset[str]]]) -> LayerKey | None:
        return None

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
            self._area.discard(self._area.home(container))
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
            trees.show(tree, target, userns)
        return target

    def unmount_rootfs(self, container: ContainerId) -> None:
        mounts.umount_below(self._area.home(container))

    def remove_rootfs(self, container: ContainerId) -> None:
        self.unmount_rootfs(container)
        if container in self.rootfs_ids():
            self._discard(f"rootfs/{container}")
        self._area.discard(self._area.home(container))

    def rootfs_ids(self) -> set[ContainerId]:
        return {ContainerId(name) for name in self._children("rootfs")}

    def written(self, container: ContainerId) -> Usage:
        """ZFS counts bytes, not files."""
        try:
            used = _zfs("get", "-Hp", "-o", "value", "used", f"{self._dataset}/rootfs/{container}")
        except CommandError:
            return Usage(0, 0)
        return Usage(int(used), 0)

    def writable_layer(self, container: ContainerId) -> Path:
        raise trees.no_writable_layer(container, "zfs")

    def collect_garbage(self) -> None:
        """A dataset goes after its clones, so go round until nothing goes any more.

        What a process still holds open is busy, and goes another time.
        """
        names = self._children("trash")
        while names:
            left = [name for name in names if not self._destroyed(f"trash/{name}")]
            if len(left) == len(names):
                break
            names = left
        self._area.empty_trash()

    def sync(self) -> None:
        """Every transaction group that is open now is written: zpool-sync(8)."""
        _run("zpool", "sync", self._dataset.partition("/")[0])

    def _create_base(self, cause: Exception) -> list[str]:
        """The dataset and its properties; those of datasets that exist already are the administrator's."""
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
    """By mount(8): its helper mount.zfs gives the kernel the options that stand in the dataset's properties."""
    _run("mount", "-t", "zfs", dataset, str(place))


def _zfs(*words: str) -> str:
    return _run("zfs", *words)


def _run(*command: str) -> str:
    ended = programs.run_blocking(command, timeout=COMMAND_TIMEOUT, name=" ".join(command[:2]))
    return ended.checked().stdout.decode()
