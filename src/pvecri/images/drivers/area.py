# SPDX-License-Identifier: Apache-2.0
"""A driver's directory.

    layers/<key>                committed layers
    new/<random>                not yet committed; after a crash the next setup removes it
    rootfs/<container>/root     the mount point of a root filesystem; its other files are the driver's
    trash/<random>              to be deleted

Layers and root filesystems appear and disappear by rename(2), never half-made. They have set-user-ID programs, so
no other user of the node may reach them: only a container's root, by its group, can traverse to its mount point.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from pathlib import Path
from tempfile import mkdtemp

from pvecri.images.drivers.base import COMMAND_TIMEOUT, Owner
from pvecri.linux import libc, mounts, programs
from pvecri.model import ContainerId


class Area:
    """The directory `root`. Mounts below it propagate to mount namespaces that are cloned from this one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.layers = root / "layers"
        self.new = root / "new"
        self.rootfs = root / "rootfs"
        self.trash = root / "trash"

    def setup(self) -> None:
        """Create what is missing and discard what a crash left half-made. Idempotent."""
        self.root.mkdir(mode=0o711, parents=True, exist_ok=True)
        for directory in (self.layers, self.new, self.rootfs, self.trash):
            directory.mkdir(mode=0o700, exist_ok=True)
        for traversed in (self.root, self.rootfs):
            traversed.chmod(0o711)  # whatever the umask
        mounts.ensure_shared(self.root)
        for uncommitted in self.new.iterdir():
            self.discard(uncommitted)

    def fresh(self) -> Path:
        """A new directory below `new`, mode 0700."""
        return Path(mkdtemp(dir=self.new))

    def discard(self, path: Path) -> None:
        """Move it to the trash, which `empty_trash` deletes. Idempotent."""
        with contextlib.suppress(FileNotFoundError):
            path.rename(self.trash / secrets.token_hex(8))

    def empty_trash(self) -> None:
        # rm(1) and not shutil.rmtree: a container can nest directories deeper than Python can recurse.
        names = [str(path) for path in self.trash.iterdir()]
        for first in range(0, len(names), 100):  # below ARG_MAX
            # --one-file-system: if a mount is left below, its files belong to somebody else.
            command = ["rm", "-rf", "--one-file-system", "--", *names[first : first + 100]]
            programs.run_blocking(command, timeout=COMMAND_TIMEOUT).checked()

    def home(self, container: ContainerId) -> Path:
        return self.rootfs / container

    def fresh_home(self, owner: Owner) -> Path:
        """A new directory for a container, which only the container's root can traverse."""
        home = self.fresh()
        os.chown(home, 0, owner.gid)  # not to the UID: the container's root may not change it
        home.chmod(0o710)
        (home / "root").mkdir()
        return home

    def publish_home(self, home: Path, container: ContainerId) -> None:
        """Rename a directory of `fresh_home` to the container's; FileExistsError if the container has one."""
        place = self.home(container)
        if place.exists():
            raise FileExistsError(errno.EEXIST, "has a root filesystem already", str(place))
        home.rename(place)

    def homes(self) -> set[ContainerId]:
        return {ContainerId(path.name) for path in self.rootfs.iterdir()}

    def sync(self) -> None:
        """Write the whole filesystem to the disk: syncfs(2)."""
        fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            libc.call("syncfs", fd, path=str(self.root))
        finally:
            os.close(fd)
