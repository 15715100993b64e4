# SPDX-License-Identifier: Apache-2.0
"""Layers as directories, root filesystems as overlayfs mounts of them. For any local filesystem.

    layers/<diff id>/           one layer, in overlay form
    new/<random>/               a layer being unpacked
    rootfs/<container>/root     the mount point
                      /w/upper  the writable layer
                      /w/work   overlayfs' own
    trash/<random>/             to be deleted

Layers and root filesystems hold set-id programs, so no other user of the node reaches them: only a container's
root, by its group, passes to the mount point of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import secrets
import shutil
import stat
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import mkdtemp

from pvecri.errors import FailedPrecondition
from pvecri.images import parents
from pvecri.images.drivers.base import LayerKey, Owner
from pvecri.linux import mounts
from pvecri.model import ContainerId

_libc = ctypes.CDLL(None, use_errno=True)


class OverlayDriver:
    """The driver below `root`.

    The layers are given to overlayfs as file descriptors' names, so that neither their paths nor their number come
    near the page that mount(2) takes. A kernel from before 6.15 takes only mounts that are attached somewhere:
    there each clone is attached to a staging directory until the overlay has it; `stage_layers` has it done so
    anywhere.
    """

    stacked = False

    def __init__(self, root: Path, *, stage_layers: bool = False) -> None:
        self._root = root
        self._layers = root / "layers"
        self._new = root / "new"
        self._rootfs = root / "rootfs"
        self._trash = root / "trash"
        self._stage_layers = stage_layers

    def setup(self) -> None:
        self._root.mkdir(mode=0o711, parents=True, exist_ok=True)
        for directory in (self._layers, self._new, self._rootfs, self._trash):
            directory.mkdir(mode=0o700, exist_ok=True)
        for open_way in (self._root, self._rootfs):
            open_way.chmod(0o711)
        self._check_storage()
        mounts.ensure_shared(self._root)
        for half_made in self._new.iterdir():
            self._discard(half_made)

    def layer_key(self, diff_ids: Sequence[str]) -> LayerKey:
        return LayerKey(diff_ids[-1].removeprefix("sha256:"))

    def layers(self) -> set[LayerKey]:
        return {LayerKey(path.name) for path in self._layers.iterdir()}

    def begin_layer(self, key: LayerKey, parent: LayerKey | None) -> Path:
        return Path(mkdtemp(dir=self._new))

    def commit_layer(self, key: LayerKey, directory: Path) -> None:
        try:
            directory.rename(self._layers / key)
        except OSError as error:
            if error.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
                raise
            self._discard(directory)

    def abort_layer(self, directory: Path) -> None:
        self._discard(directory)

    def parents_layer(self, layers: Sequence[tuple[LayerKey, frozenset[str]]]) -> LayerKey | None:
        unpacked = [parents.Unpacked(self._layers / key, implicit) for key, implicit in layers]
        directories = parents.inherited(unpacked)
        if not directories:
            return None
        key = LayerKey(hashlib.sha256("\n".join(parents.described(directories)).encode()).hexdigest())
        directory = self.begin_layer(key, None)
        parents.make(directory, directories)
        self.commit_layer(key, directory)
        return key

    def remove_layer(self, key: LayerKey) -> None:
        self._discard(self._layers / key)

    def create_rootfs(self, container: ContainerId, layers: Sequence[LayerKey], owner: Owner) -> None:
        directory = self._rootfs / container
        new = Path(mkdtemp(dir=self._new))
        os.chown(new, 0, owner.gid)
        new.chmod(0o710)
        (new / "root").mkdir()
        (new / "w").mkdir(mode=0o700)
        (new / "w/work").mkdir(mode=0o700)
        upper = new / "w/upper"
        upper.mkdir()
        os.chown(upper, owner.uid, owner.gid)
        upper.chmod(self._root_mode(layers))
        if directory.exists():
            self._discard(new)
            raise FileExistsError(errno.EEXIST, "has a root filesystem already", str(directory))
        new.rename(directory)

    def mount_rootfs(self, container: ContainerId, layers: Sequence[LayerKey], userns: Path | None) -> Path:
        directory = self._rootfs / container
        target = directory / "root"
        if mounts.is_mountpoint(target):
            return target
        self._renew_work(directory / "w/work")
        with self._opened(layers, userns) as fds:
            try:
                if self._stage_layers and userns is not None:
                    self._mount_staged(directory, fds)
                else:
                    self._mount_overlay(directory, fds)
            except OSError as error:
                if error.errno != errno.EINVAL or userns is None or self._stage_layers:
                    raise
                self._mount_staged(directory, fds)
                self._stage_layers = True
        return target

    def unmount_rootfs(self, container: ContainerId) -> None:
        mounts.umount_below(self._rootfs / container)

    def remove_rootfs(self, container: ContainerId) -> None:
        self.unmount_rootfs(container)
        self._discard(self._rootfs / container)

    def rootfs_ids(self) -> set[ContainerId]:
        return {ContainerId(path.name) for path in self._rootfs.iterdir()}

    def writable_layer(self, container: ContainerId) -> Path:
        return self._rootfs / container / "w/upper"

    def collect_garbage(self) -> None:
        """By rm(1): a container may have nested directories deeper than Python's own recursion goes."""
        names = [str(path) for path in self._trash.iterdir()]
        for first in range(0, len(names), 100):
            command = ["rm", "-rf", "--one-file-system", "--", *names[first : first + 100]]
            subprocess.run(command, check=True, capture_output=True)

    def sync(self) -> None:
        fd = os.open(self._layers, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if _libc.syncfs(fd) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), str(self._layers))
        finally:
            os.close(fd)

    def _check_storage(self) -> None:
        """Upper layers hold whiteouts and trusted attributes."""
        try:
            os.setxattr(self._new, "trusted.overlay.pvecri", b"y")
            os.removexattr(self._new, "trusted.overlay.pvecri")
        except OSError as error:
            raise FailedPrecondition(
                f"{self._root}: {error.strerror}: its filesystem cannot hold overlayfs layers; "
                "images.root names another place"
            ) from error

    def _root_mode(self, layers: Sequence[LayerKey]) -> int:
        """The upper layer's top directory hides the image's, so it takes its mode over."""
        return stat.S_IMODE((self._layers / layers[-1]).stat().st_mode) if layers else 0o755

    @contextlib.contextmanager
    def _opened(self, layers: Sequence[LayerKey], userns: Path | None) -> Iterator[list[int]]:
        """Descriptors of the layers, topmost first, cloned and idmapped when there is a user namespace.

        overlayfs refuses a layer that an image has twice; the upper one of the two says all that both say.
        """
        with contextlib.ExitStack() as stack:
            userns_fd = None
            if userns is not None:
                userns_fd = os.open(userns, os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, userns_fd)
            fds = []
            for key in dict.fromkeys(reversed(layers)):
                fds.append(_open_layer(self._layers / key, userns_fd))
                stack.callback(os.close, fds[-1])
            yield fds

    def _mount_overlay(self, directory: Path, fds: Sequence[int]) -> None:
        """`volatile`: nothing is synchronised; a writable layer's life ends with its node's at the latest."""
        lower = ":".join(f"/proc/self/fd/{fd}" for fd in fds) or str(self._empty())
        options = f"index=off,volatile,lowerdir={lower},upperdir={directory}/w/upper,workdir={directory}/w/work"
        mounts.mount("overlay", directory / "root", "overlay", mounts.MS_NODEV, options)

    def _mount_staged(self, directory: Path, fds: Sequence[int]) -> None:
        stage = directory / "w/stage"
        stage.mkdir(exist_ok=True)
        mounts.mount("pvecri-stage", stage, "tmpfs")
        try:
            mounts.make_private(stage)
            for fd in fds:
                place = stage / str(fd)
                place.mkdir()
                mounts.move_mount(fd, place)
            self._mount_overlay(directory, fds)
        finally:
            mounts.umount(stage, detach=True)
            stage.rmdir()

    def _empty(self) -> Path:
        """overlayfs wants a lower directory even when an image has no layers."""
        empty = self._root / "empty"
        empty.mkdir(mode=0o755, exist_ok=True)
        return empty

    def _renew_work(self, work: Path) -> None:
        """A volatile mount leaves a mark that forbids the next one; the work directory holds nothing else."""
        if (work / "work").exists():
            shutil.rmtree(work)
            work.mkdir(mode=0o700)

    def _discard(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            path.rename(self._trash / secrets.token_hex(8))


def _open_layer(path: Path, userns_fd: int | None) -> int:
    if userns_fd is None:
        return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return mounts.open_idmapped(path, userns_fd, readonly=True)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise FailedPrecondition(
            f"{path}: its filesystem cannot be mounted with mapped ids, which unprivileged pods need; images.root "
            "names another place, images.driver another kind of storage"
        ) from error
