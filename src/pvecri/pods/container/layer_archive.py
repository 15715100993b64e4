# SPDX-License-Identifier: Apache-2.0
"""A container's writable layer as a tar archive, also while the container changes it.

Nothing is opened through a symbolic link: a container that swaps a directory for one cannot get the node's files
into the archive. What is replaced or removed meanwhile is left out.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pvecri.linux.openat2 import open_without_links

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_CHANGED = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL, errno.ENXIO)
"""Gone, or of another type than a moment ago: readlink(2) of no link (EINVAL), open(2) of a socket (ENXIO)."""
_TYPES = {
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}
"""A socket has no type in an archive."""


def pack_layer(upper: Path, archive: Path) -> list[str]:
    """Pack an overlay's upper directory without its whiteouts; returns the paths that those delete. Blocks."""
    root = os.open(upper, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
            return _Packer(tar, root).pack()
    finally:
        os.close(root)


class _Packer:
    def __init__(self, tar: tarfile.TarFile, root: int) -> None:
        self._tar = tar
        self._root = root
        self._deleted: list[str] = []
        self._links: dict[int, str] = {}
        """The path of each file that has several, by inode."""

    def pack(self) -> list[str]:
        pending = ["."]
        while pending:
            path = pending.pop()
            with _unless_changed():
                fd = open_without_links(self._root, path, _DIRECTORY)
                try:
                    self._tar.addfile(_info(path, os.fstat(fd)))
                    names = sorted(entry.name for entry in os.scandir(fd))
                    pending += [f"{path}/{name}" for name in names if self._is_directory(fd, path, name)]
                finally:
                    os.close(fd)
        return self._deleted

    def _is_directory(self, parent: int, directory: str, name: str) -> bool:
        """Whether an entry is a directory, to be packed later; anything else is packed at once."""
        with _unless_changed():
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                return True
            self._pack_entry(parent, f"{directory}/{name}", name, found)
        return False

    def _pack_entry(self, parent: int, path: str, name: str, found: os.stat_result) -> None:
        # A whiteout is a character device 0:0 (Linux: Documentation/filesystems/overlayfs.rst).
        if stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:
            self._deleted.append(path.removeprefix("."))
        elif stat.S_ISREG(found.st_mode):
            self._pack_file(path, os.open(name, _FILE, dir_fd=parent))
        elif stat.S_IFMT(found.st_mode) in _TYPES:
            info = _info(path, found)
            if info.issym():
                info.linkname = os.readlink(name, dir_fd=parent)
            self._tar.addfile(info)

    def _pack_file(self, path: str, fd: int) -> None:
        with open(fd, "rb") as content:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                return
            info = _info(path, found)
            first = self._links.setdefault(found.st_ino, path) if found.st_nlink > 1 else path
            if first != path:
                info.type, info.linkname, info.size = tarfile.LNKTYPE, first, 0
            self._tar.addfile(info, content)


def _info(path: str, found: os.stat_result) -> tarfile.TarInfo:
    info = tarfile.TarInfo(path)
    info.type = _TYPES[stat.S_IFMT(found.st_mode)]
    info.mode = stat.S_IMODE(found.st_mode)
    info.uid, info.gid, info.mtime = found.st_uid, found.st_gid, found.st_mtime
    if info.isreg():
        info.size = found.st_size
    if info.isdev():
        info.devmajor, info.devminor = os.major(found.st_rdev), os.minor(found.st_rdev)
    return info


@contextmanager
def _unless_changed() -> Iterator[None]:
    """Leave out what is removed or replaced, by a symbolic link for instance, while it is packed."""
    try:
        yield
    except OSError as error:
        if error.errno not in _CHANGED:
            raise
