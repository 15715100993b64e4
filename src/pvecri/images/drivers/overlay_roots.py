# SPDX-License-Identifier: Apache-2.0
"""Root filesystems as overlayfs mounts: read-only trees below, a writable layer of the container's own on top.

<home>/root      the mount point
      /w/upper   the writable layer
      /w/work    overlayfs' own
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

    Trees are given to overlayfs as file descriptors' names, so that neither their paths nor their number come near
    the page that mount(2) takes. A kernel from before 6.15 takes only mounts that are attached somewhere: there
    each clone is attached to a staging directory until the overlay has it; `stage` has it done so anywhere. With
    `limit`, in bytes, writable layers are filesystems of that size on loop devices.
    """

    def __init__(self, area: Area, *, stage: bool = False, limit: int = 0) -> None:
        self._area = area
        self._stage = stage
        self._limit = limit

    def create(self, container: ContainerId, trees: Sequence[Path], owner: Owner) -> None:
        """An empty writable layer; `trees` lowest first. FileExistsError when the container has one."""
        home = self._area.fresh_home(owner)
        try:
            place = home / "w"
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
            self._area.discard(home)

    def mount(self, container: ContainerId, trees: Sequence[Path], userns: Path | None) -> Path:
        """Mount, or leave mounted; see RootfsDriver.mount_rootfs."""
        home = self._area.home(container)
        target = home / "root"
        if mounts.is_mountpoint(target):
            return target
        _mount_filesystem(home)
        with _opened(trees, userns) as fds:
            try:
                if self._stage and userns is not None:
                    self._mount_staged(home, fds)
                else:
                    self._mount_overlay(home, fds)
            except OSError as error:
                if error.errno != errno.EINVAL or userns is None or self._stage:
                    raise
                self._mount_staged(home, fds)
                self._stage = True
        return target

    def unmount(self, container: ContainerId) -> None:
        """Unmount, in use or not. Idempotent."""
        mounts.umount_below(self._area.home(container))

    def remove(self, container: ContainerId) -> None:
        """Unmount and discard. Idempotent."""
        self.unmount(container)
        self._area.discard(self._area.home(container))

    def upper(self, container: ContainerId) -> Path:
        """The writable layer's directory; it is empty while a limited one is not mounted."""
        return self._area.home(container) / "w/upper"

    def _mount_overlay(self, home: Path, fds: Sequence[int]) -> None:
        """`volatile`: nothing is synchronised; a writable layer's life ends with its node's at the latest.

        A mount that failed leaves its mark, too.
        """
        _renew_work(home / "w/work")
        lower = ":".join(f"/proc/self/fd/{fd}" for fd in fds) or str(self._empty())
        options = f"index=off,volatile,lowerdir={lower},upperdir={home}/w/upper,workdir={home}/w/work"
        mounts.mount("overlay", home / "root", "overlay", mounts.MS_NODEV, options)

    def _mount_staged(self, home: Path, fds: Sequence[int]) -> None:
        stage = home / "w/stage"
        stage.mkdir(exist_ok=True)
        mounts.mount("pvecri-stage", stage, "tmpfs")
        try:
            mounts.make_private(stage)
            for fd in fds:
                place = stage / str(fd)
                place.mkdir()
                mounts.move_mount(fd, place)
            self._mount_overlay(home, fds)
        finally:
            mounts.umount(stage, detach=True)
            stage.rmdir()

    def _empty(self) -> Path:
        """overlayfs wants a lower directory even when an image has no layers."""
        empty = self._area.root / "empty"
        empty.mkdir(mode=0o755, exist_ok=True)
        return empty


def _top_mode(trees: Sequence[Path]) -> int:
    """The upper layer's top directory hides the image's, so it takes its mode over."""
    return stat.S_IMODE(trees[-1].stat().st_mode) if trees else 0o755


def _make_filesystem(file: Path, content: Path, size: int) -> None:
    """A sparse file that holds a filesystem with this content, which it takes the place of.

    Without a journal: it does not outlive a crash of the node anyway (docs/decisions/0013).
    """
    with file.open("xb") as sparse:
        sparse.truncate(size)
    options = ["-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "nodiscard", "-d", str(content)]
    programs.run_blocking(["mkfs.ext4", *options, file], timeout=COMMAND_TIMEOUT).checked()
    shutil.rmtree(content)
    content.mkdir(mode=0o700)


def _mount_filesystem(home: Path) -> None:
    file = home / "w.ext4"
    if file.exists() and not mounts.is_mountpoint(home / "w"):
        with loop.attached(file, readonly=False) as device:
            mounts.mount(device, home / "w", "ext4", mounts.MS_NODEV)


def _renew_work(work: Path) -> None:
    """A volatile mount leaves a mark that forbids the next one; the work directory holds nothing else."""
    if (work / "work").exists():
        shutil.rmtree(work)
        work.mkdir(mode=0o700)


@contextlib.contextmanager
def _opened(trees: Sequence[Path], userns: Path | None) -> Iterator[list[int]]:
    """Descriptors of the trees, topmost first, cloned and idmapped when there is a user namespace.

    overlayfs refuses a layer that an image has twice; the upper one of the two says all that both say.
    """
    with contextlib.ExitStack() as stack:
        userns_fd = None
        if userns is not None:
            userns_fd = os.open(userns, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, userns_fd)
        fds = []
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
    """The error to raise when a tree cannot be shown with mapped ids."""
    if error.errno != errno.EINVAL:
        return error
    return FailedPrecondition(
        f"{path}: its filesystem cannot be mounted with mapped ids, which unprivileged pods need; images.root "
        "names another place, images.driver another kind of storage"
    )
