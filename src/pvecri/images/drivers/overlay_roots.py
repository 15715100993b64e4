# SPDX-License-Identifier: Apache-2.0
"""Root filesystems as overlayfs mounts: read-only trees below, a writable layer of the container's own on top.

<home>/root      the mount point
      /w/upper   the writable layer
      /w/work    overlayfs' workdir
      /w.ext4    with a size limit: the filesystem that is mounted at w
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from pvecri.errors import FailedPrecondition
from pvecri.images.drivers.area import Area
from pvecri.images.drivers.base import COMMAND_TIMEOUT, Owner
from pvecri.linux import loop, mounts, programs
from pvecri.model import ContainerId


class OverlayRoots:
    """The root filesystems in `area`.

    overlayfs gets trees as /proc/self/fd/N: mount(2) takes one page of options, which the paths of 40 layers
    exceed. Kernels before 6.15 refuse lower directories of detached mounts (EINVAL): there each clone is attached
    to a staging directory until the overlay is mounted. With `limit`, in bytes, writable layers are filesystems of
    that size on loop devices.
    """

    def __init__(self, area: Area, *, limit: int = 0) -> None:
        self._area = area
        self.stages = False
        """Whether the kernel was found to need staging."""
        self._limit = limit

    def create(self, container: ContainerId, trees: Sequence[Path], owner: Owner) -> None:
        """Create an empty writable layer; `trees` lowest first. FileExistsError if the container has one."""
        home = self._area.fresh_home(owner)
        try:
            place = home / "w"
            # The container reaches its files through the mount only: set-user-ID programs that it writes must not
            # be reachable for the node's users (decision 0053).
            place.mkdir(mode=0o700)
            (place / "work").mkdir(mode=0o700)
            upper = place / "upper"
            upper.mkdir()
            os.chown(upper, owner.uid, owner.gid)
            upper.chmod(_top_mode(trees))
            if self._limit:
                _make_filesystem(home / "w.ext4", place, self._limit)
            self._area.publish_home(home, container)
        finally:
            self._area.discard(home)  # does nothing once it is published

    def mount(self, container: ContainerId, trees: Sequence[Path], userns: Path | None) -> Path:
        """See RootfsDriver.mount_rootfs."""
        home = self._area.home(container)
        target = home / "root"
        if mounts.is_mountpoint(target):
            return target
        _mount_filesystem(home)
        with _opened(trees, userns) as fds:
            try:
                if self.stages and userns is not None:
                    self._mount_staged(home, fds)
                else:
                    self._mount_overlay(home, fds)
            except OSError as error:
                # EINVAL for the first time may be a kernel before 6.15 (decision 0013).
                if error.errno != errno.EINVAL or userns is None or self.stages:
                    raise
                self._mount_staged(home, fds)
                self.stages = True
        return target

    def unmount(self, container: ContainerId) -> None:
        """Unmount, in use or not. Idempotent."""
        home = self._area.home(container)
        for place in (home / "root", home / "w/stage", home / "w"):
            mounts.detach(place)

    def remove(self, container: ContainerId) -> None:
        """Unmount and discard. Idempotent."""
        self.unmount(container)
        self._area.discard(self._area.home(container))

    def upper(self, container: ContainerId) -> Path:
        """The writable layer's directory; it is empty if it has a limit and is not mounted."""
        return self._area.home(container) / "w/upper"

    def _mount_overlay(self, home: Path, fds: Sequence[int]) -> None:
        work = home / "w/work"
        if (work / "work").exists():
            # The mark of a volatile mount, also of one that failed; it makes the next mount fail with EINVAL.
            shutil.rmtree(work)
            work.mkdir(mode=0o700)
        lower = ":".join(f"/proc/self/fd/{fd}" for fd in fds) or str(self._empty())
        # volatile: no fsync reaches the disk. A container does not outlive a crash of its node anyway.
        # index=off: with it an upperdir that a lazily unmounted overlay still uses is refused (EBUSY).
        options = f"index=off,volatile,lowerdir={lower},upperdir={home}/w/upper,workdir={work}"
        # nodev: a container gets devices by its own /dev, not by nodes that an image brings (decision 0013).
        mounts.mount("overlay", home / "root", "overlay", mounts.MS_NODEV, options)

    def _mount_staged(self, home: Path, fds: Sequence[int]) -> None:
        stage = home / "w/stage"
        stage.mkdir(exist_ok=True)
        mounts.mount("pvecri-stage", stage, "tmpfs")
        try:
            mounts.make_private(stage)  # else the clones propagate to the pods' mount namespaces
            for fd in fds:
                place = stage / str(fd)
                place.mkdir()
                mounts.move_mount(fd, place)
            self._mount_overlay(home, fds)
        finally:
            mounts.umount(stage, detach=True)  # the overlay has private clones of its own
            stage.rmdir()

    def _empty(self) -> Path:
        # overlayfs needs a lower directory, which an image without layers does not have.
        empty = self._area.root / "empty"
        empty.mkdir(mode=0o755, exist_ok=True)
        return empty


def _top_mode(trees: Sequence[Path]) -> int:
    # The upper directory hides the image's root directory, so it has to have its mode.
    return stat.S_IMODE(trees[-1].stat().st_mode) if trees else 0o755


def _make_filesystem(file: Path, content: Path, size: int) -> None:
    """Replace the directory `content` by an empty one, and by an ext4 image of it in the sparse file."""
    with file.open("xb") as sparse:
        sparse.truncate(size)
    # No journal: the writable layer does not outlive a crash of the node anyway (docs/decisions/0013).
    # -m 0 reserves nothing for the node's root. nodiscard: the file is sparse already.
    options = ["-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "nodiscard", "-d", str(content)]
    programs.run_blocking(["mkfs.ext4", *options, file], timeout=COMMAND_TIMEOUT).checked()
    shutil.rmtree(content)
    content.mkdir(mode=0o700)  # the mount point


def _mount_filesystem(home: Path) -> None:
    file = home / "w.ext4"
    if file.exists() and not mounts.is_mountpoint(home / "w"):
        with loop.attached(file, readonly=False) as device:
            mounts.mount(device, home / "w", "ext4", mounts.MS_NODEV)


@contextlib.contextmanager
def _opened(trees: Sequence[Path], userns: Path | None) -> Iterator[list[int]]:
    """Descriptors of the trees, topmost first, cloned and idmapped if there is a user namespace."""
    with contextlib.ExitStack() as stack:
        userns_fd = None
        if userns is not None:
            userns_fd = os.open(userns, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, userns_fd)
        fds = []
        # overlayfs refuses the same directory twice (ELOOP); the upper occurrence hides all of the lower one.
        # lowerdir= has the topmost layer first.
        for tree in dict.fromkeys(reversed(trees)):
            fds.append(_open_tree(tree, userns_fd))
            stack.callback(os.close, fds[-1])
        yield fds


def _open_tree(path: Path, userns_fd: int | None) -> int:
    if userns_fd is None:
        return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return mounts.open_clone(path, userns_fd, readonly=True)
    except OSError as error:
        raise cannot_be_mapped(path, error) from error


def cannot_be_mapped(path: Path, error: OSError) -> Exception:
    """The error for a tree that cannot be idmapped: EINVAL means that its filesystem does not support it."""
    if error.errno != errno.EINVAL:
        return error
    return FailedPrecondition(
        f"{path}: its filesystem does not support idmapped mounts, which unprivileged pods need; set images.root "
        "to a directory on another one, or images.driver to another driver"
    )
