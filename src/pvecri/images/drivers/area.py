# SPDX-License-Identifier: Apache-2.0
"""The directory that a driver keeps its things in, and how they come and go there.

    layers/<key>                what is committed
    new/<random>                what is being made; a crash leaves it, and the next setup removes it
    rootfs/<container>/root     where a root filesystem is mounted; what else is there is the driver's
    trash/<random>              what is to be deleted

Things appear and disappear by rename(2), so that nothing half made is ever seen. Layers and root filesystems hold
set-id programs, so no other user of the node reaches them: only a container's root, by its group, passes to the
mount point of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
from pathlib import Path
from tempfile import mkdtemp

from pvecri.images.drivers.base import COMMAND_TIMEOUT, Owner
from pvecri.linux import mounts, programs
from pvecri.model import ContainerId

_libc = ctypes.CDLL(None, use_errno=True)


class Area:
    """The directory `root`. Mounts below it show in mount namespaces that are cloned from this one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.layers = root / "layers"
        self.new = root / "new"
        self.rootfs = root / "rootfs"
        self.trash = root / "trash"

    def setup(self) -> None:
        """Make what is missing and discard what a crash left half made. Idempotent."""
        self.root.mkdir(mode=0o711, parents=True, exist_ok=True)
        for directory in (self.layers, self.new, self.rootfs, self.trash):
            directory.mkdir(mode=0o700, exist_ok=True)
        for open_way in (self.root, self.rootfs):
            open_way.chmod(0o711)
        mounts.ensure_shared(self.root)
        for half_made in self.new.iterdir():
            self.discard(half_made)

    def fresh(self) -> Path:
        """A new directory, mode 0700, that is nothing yet."""
        return Path(mkdtemp(dir=self.new))

    def discard(self, path: Path) -> None:
        """Out of sight at once; `empty_trash` deletes it. Idempotent."""
        with contextlib.suppress(FileNotFoundError):
            path.rename(self.trash / secrets.token_hex(8))

    def empty_trash(self) -> None:
        """By rm(1): a container may have nested directories deeper than Python's own recursion goes."""
        names = [str(path) for path in self.trash.iterdir()]
        for first in range(0, len(names), 100):
            command = ["rm", "-rf", "--one-file-system", "--", *names[first : first + 100]]
            programs.run_blocking(command, timeout=COMMAND_TIMEOUT).checked()

    def home(self, container: ContainerId) -> Path:
        """The container's directory."""
        return self.rootfs / container

    def fresh_home(self, owner: Owner) -> Path:
        """A container's directory to be: only the container's root passes through it, to `root`."""
        home = self.fresh()
        os.chown(home, 0, owner.gid)
        home.chmod(0o710)
        (home / "root").mkdir()
        return home

    def publish_home(self, home: Path, container: ContainerId) -> None:
        """The container has a root filesystem from now on; FileExistsError when it has one already."""
        place = self.home(container)
        if place.exists():
            raise FileExistsError(errno.EEXIST, "has a root filesystem already", str(place))
        home.rename(place)

    def homes(self) -> set[ContainerId]:
        """The containers that have a root filesystem."""
        return {ContainerId(path.name) for path in self.rootfs.iterdir()}

    def sync(self) -> None:
        """Put all that is written on the disk: syncfs(2)."""
        fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if _libc.syncfs(fd) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), str(self.root))
        finally:
            os.close(fd)
