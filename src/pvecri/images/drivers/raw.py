# SPDX-License-Identifier: Apache-2.0
"""Layers as filesystem images, one file a layer; root filesystems as overlayfs mounts of them.

    layers/<diff ID>      an EROFS or ext4 image of the layer, with whiteouts in overlayfs' form
    mounted/<diff ID>/    its mount point, read-only, from its first use on

A layer of any number of files costs one inode, and is copied, checked and deleted as one file; an extended
attribute has its digest. The image is made of an extracted directory, so a pull writes each layer twice.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Final

from pvecri.errors import FailedPrecondition
from pvecri.images.drivers.base import COMMAND_TIMEOUT, LayerKey, Owner
from pvecri.images.drivers.overlay import OverlayDriver
from pvecri.images.drivers.overlay_roots import OverlayRoots
from pvecri.images.usage import Usage
from pvecri.linux import loop, mounts, programs
from pvecri.model import ContainerId

_DIGEST: Final = "trusted.pvecri.sha256"  # trusted.*: for root only
_EROFS_MAGIC: Final = b"\xe2\xe1\xf5\xe0"
_EROFS_MAGIC_OFFSET: Final = 1024
_BLOCK: Final = 4096
_SPARE: Final = 64 << 20
"""Bytes beyond the files, for group descriptors and bitmaps; the image file is sparse."""
_INODE: Final = 1024
"""Bytes for an inode of 512 and its directory entry; attributes that do not fit take a block each."""


class RawDriver(OverlayDriver):
    """The driver below `root`. With `limit`, in bytes, a writable layer is an ext4 image of that size."""

    def __init__(self, root: Path, *, limit: int = 0) -> None:
        super().__init__(root)
        self._roots = OverlayRoots(self._area, limit=limit)
        self._mounted = root / "mounted"
        # Several containers may be the first of an image at once: each layer must be mounted only once.
        self._mounting = Lock()
        self._erofs = _kernel_supports("erofs")

    def setup(self) -> None:
        super().setup()
        self._mounted.mkdir(mode=0o700, exist_ok=True)

    def commit_layer(self, key: LayerKey, directory: Path) -> None:
        file = directory.with_name(f"{directory.name}.fs")
        try:
            self._make(file, directory)
            os.setxattr(file, _DIGEST, _digest(file).encode())
            with contextlib.suppress(FileExistsError):  # rename(2) would replace the layer while it is mounted
                (self._area.layers / key).hardlink_to(file)
        finally:
            self._area.discard(file)
            self._area.discard(directory)

    def layer_usage(self, key: LayerKey) -> Usage | None:
        return Usage((self._area.layers / key).stat().st_blocks * 512, 1)

    def layer_tree(self, key: LayerKey) -> Path:
        place = self._mounted / key
        with self._mounting:
            if not mounts.is_mountpoint(place):
                place.mkdir(exist_ok=True)
                _mount(self._area.layers / key, place)
        return place

    def remove_layer(self, key: LayerKey) -> None:
        place = self._mounted / key
        mounts.detach(place)
        if place.exists():
            place.rmdir()
        super().remove_layer(key)

    def create_rootfs(self, container: ContainerId, layers: Sequence[LayerKey], owner: Owner) -> None:
        self._roots.create(container, [self.layer_tree(key) for key in layers[-1:]], owner)

    def check_layer(self, key: LayerKey) -> str:
        file = self._area.layers / key
        promised = os.getxattr(file, _DIGEST).decode()
        found = _digest(file)
        return "" if found == promised else f"{file} has the digest {found}, expected {promised}"

    def _make(self, file: Path, directory: Path) -> None:
        """Make an EROFS image if kernel and mkfs.erofs support it, else ext4."""
        size, allocated, inodes = _disk_usage(directory)
        # mkfs.erofs can fail: 1.5 of Debian 12 does on names of 255 bytes.
        if self._erofs and _make_erofs(file, directory, sparse=size > 2 * allocated):
            return
        file.unlink(missing_ok=True)
        _make_ext4(file, directory, allocated + inodes * (_INODE + _BLOCK) + _SPARE, inodes)


def _make_erofs(file: Path, directory: Path, *, sparse: bool) -> bool:
    """Whether it could be made."""
    # Compact inodes have 16 bits for owners and no time of their own.
    options = ["--quiet", "--preserve-mtime", "-x1", "-Eforce-inode-extended"]
    if sparse:  # chunks of a block keep holes, but make small files take a whole block
        options.append(f"--chunksize={_BLOCK}")
    # mkfs.erofs (erofs-utils) need not be installed: the layer is ext4 then.
    with contextlib.suppress(FileNotFoundError):
        ended = programs.run_blocking(["mkfs.erofs", *options, file, directory], timeout=COMMAND_TIMEOUT)
        return ended.returncode == 0
    return False


def _make_ext4(file: Path, directory: Path, size: int, inodes: int) -> None:
    # Made empty and then filled: `mkfs.ext4 -d` takes ten times as long, and leaves a lost+found.
    with file.open("wb") as sparse:
        sparse.truncate(size)
    # It is written once: no journal, no room to grow. Inodes of 512 bytes have room for file capabilities and
    # marks.
    layout = ["-m", "0", "-O", "^has_journal,^resize_inode", "-I", "512", "-N", str(inodes + 1024)]
    programs.run_blocking(["mkfs.ext4", "-q", "-F", *layout, file], timeout=COMMAND_TIMEOUT).checked()
    place = directory.with_name(f"{directory.name}.mnt")
    place.mkdir()
    with contextlib.ExitStack() as undo:
        undo.callback(place.rmdir)
        with loop.attached(file, readonly=False) as device:
            mounts.mount(device, place, "ext4")
            undo.callback(mounts.umount, place, detach=False)
        (place / "lost+found").rmdir()  # containers would see it
        copying = ("cp", "--archive", "--no-target-directory", directory, place)
        programs.run_blocking(copying, timeout=COMMAND_TIMEOUT).checked()


def _mount(file: Path, place: Path) -> None:
    flags = mounts.MS_RDONLY | mounts.MS_NODEV
    if _is_erofs(file):
        try:
            mounts.mount(file, place, "erofs", flags)  # without a loop device, from Linux 6.12 on
        except OSError as error:
            if error.errno not in {errno.ENOTBLK, errno.EINVAL}:  # an older kernel
                raise
        else:
            return
    with loop.attached(file, readonly=True) as device:
        try:
            mounts.mount(device, place, "erofs" if _is_erofs(file) else "ext4", flags)
        except OSError as error:
            raise FailedPrecondition(
                f"{file} cannot be mounted: {error.strerror}; `pvecri image check` tells if it is damaged"
            ) from error


def _digest(file: Path) -> str:
    with file.open("rb") as image:
        return hashlib.file_digest(image, "sha256").hexdigest()


def _is_erofs(file: Path) -> bool:
    with file.open("rb") as image:
        image.seek(_EROFS_MAGIC_OFFSET)
        return image.read(len(_EROFS_MAGIC)) == _EROFS_MAGIC


def _kernel_supports(filesystem: str) -> bool:
    known = Path("/proc/filesystems").read_text().split()
    # A filesystem whose module is not loaded yet is not in /proc/filesystems.
    modules = Path(f"/lib/modules/{os.uname().release}/kernel/fs/{filesystem}")
    return filesystem in known or modules.exists()


def _disk_usage(directory: Path) -> tuple[int, int, int]:
    """The files' apparent size, their allocated size, both in bytes, and their number."""
    size = allocated = inodes = 0
    for top, directories, files in os.walk(directory):
        for name in (*directories, *files):
            found = Path(top, name).lstat()
            size += found.st_size
            allocated += found.st_blocks * 512
            inodes += 1
    return size, allocated, inodes + 1
