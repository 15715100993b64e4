# SPDX-License-Identifier: Apache-2.0
"""A layer by itself, from archive members to files. Standard library only; runs confined (unpack.py).

The form is the one that overlayfs knows: a whiteout is a character device 0/0, an opaque directory has the
attribute trusted.overlay.opaque. See OCI image-spec, layer.md.
"""

# Names in archives are bytes, which pathlib does not take.
# ruff: noqa: PTH101, PTH102, PTH108, PTH211
from __future__ import annotations

import errno
import os
import shutil
import stat
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from pvecri.images.unpacking.tar_stream import Archive, LayerError

BLOCK: Final = 4096
ID_USUAL: Final = 65_535
"""The largest ID of the user namespace that unprivileged pods usually have."""
HIGH_IDS_MAX: Final = 1000

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_NOT_STORED = frozenset({errno.ENOTSUP, errno.EPERM})


@dataclass
class LayerTree:
    """Writes members below /, which is the layer's empty directory by then; counts what they take."""

    max_size: int
    max_entries: int
    size: int = 0
    allocated: int = BLOCK
    inodes: int = 1
    entries: int = 0
    times: list[tuple[bytes, int]] = field(default_factory=list)
    implicit: set[bytes] = field(default_factory=lambda: {b"/"})
    high_ids: set[int] = field(default_factory=set)
    """Owners and groups above ID_USUAL, HIGH_IDS_MAX at most."""

    _resolved: tuple[bytes, bytes] = (b"", b"")
    """The last member's directory as the archive names it, and without symlinks: the next is often in it, too."""

    def add(self, member: tarfile.TarInfo, archive: Archive) -> None:
        """Create one member, with all that its header says of it."""
        self._count(member)
        path = self._resolve(_path(member.name))
        name = path.rpartition(b"/")[2]
        if name.startswith(_WHITEOUT):
            self._with_parents(path, lambda: self._whiteout(path, name))
        elif path == b"/":
            self._root(member)
        else:
            self._with_parents(path, lambda: self._create(path, member, archive))

    def finish(self) -> None:
        """Directories get their times last: what was written below them has changed them."""
        for path, time in reversed(self.times):
            _set_time(path, time)

    def _count(self, member: tarfile.TarInfo) -> None:
        if member.size < 0:
            raise LayerError(f"{member.name!r} has {member.size} bytes")
        self.entries += 1
        self.size += member.size
        if member.uid > ID_USUAL or member.gid > ID_USUAL:
            self._note_ids(member)
        if self.entries > self.max_entries:
            raise LayerError(f"it has more than {self.max_entries} entries (images.max_layer_entries)")
        if self.size > self.max_size:
            raise LayerError(f"its files are larger than {self.max_size} bytes (images.max_layer_size)")

    def _note_ids(self, member: tarfile.TarInfo) -> None:
        found = {each for each in (member.uid, member.gid) if each > ID_USUAL}
        if len(self.high_ids | found) <= HIGH_IDS_MAX:
            self.high_ids |= found

    def _resolve(self, path: bytes) -> bytes:
        """The path without symlinks above its last part, whether or not what they lead to is there.

        With `lib -> usr/lib` a layer may hold `lib/x` where only a lower layer has `usr/lib`: it is `usr/lib/x`.
        """
        directory, _, name = path.rpartition(b"/")
        if directory != self._resolved[0]:
            self._resolved = (directory, os.path.realpath(directory or b"/").rstrip(b"/"))
        return self._resolved[1] + b"/" + name

    def _with_parents(self, path: bytes, create: Callable[[], None]) -> None:
        """Archives may leave out the directories above a file."""
        try:
            create()
        except (FileNotFoundError, NotADirectoryError):
            if self._make_parents(path) == 0:
                raise
            create()

    def _make_parents(self, path: bytes) -> int:
        made = 0
        parts = path.split(b"/")[1:-1]
        for depth in range(1, len(parts) + 1):
            parent = b"/" + b"/".join(parts[:depth])
            try:
                os.mkdir(parent, 0o755)
            except FileExistsError:
                if not _is_whiteout(parent):
                    continue
                os.unlink(parent)
                os.mkdir(parent, 0o755)
                self._hide_below(parent)
            self.implicit.add(parent)
            made += 1
        self.inodes += made
        self.allocated += made * BLOCK
        return made

    def _root(self, member: tarfile.TarInfo) -> None:
        if not member.isdir():
            raise LayerError("its root is not a directory")
        _set_owner_and_mode(b"/", member)
        _set_attributes(b"/", member)
        self.times.append((b"/", _time(member)))
        self.implicit.discard(b"/")

    def _whiteout(self, path: bytes, name: bytes) -> None:
        """Other names that begin with .wh..wh. are old bookkeeping of aufs and mean nothing."""
        parent = path[: -len(name)]
        if name == _OPAQUE:
            self._hide_below(parent)
        elif not name.startswith(_WHITEOUT + _WHITEOUT):
            hidden = parent + name[len(_WHITEOUT) :]
            if hidden[len(parent) :] in {b"", b".", b".."}:
                raise LayerError(f"the whiteout {os.fsdecode(path)!r} names nothing")
            self._hide(hidden)

    def _hide(self, path: bytes) -> None:
        try:
            os.mknod(path, stat.S_IFCHR, 0)
        except FileExistsError:
            # The layer puts something of its own in the place of what it removes.
            if stat.S_ISDIR(os.lstat(path).st_mode):
                self._hide_below(path)

    def _hide_below(self, directory: bytes) -> None:
        os.setxattr(directory, b"trusted.overlay.opaque", b"y")

    def _create(self, path: bytes, member: tarfile.TarInfo, archive: Archive) -> None:
        """A later member of the same name takes the place of an earlier one, except directories, which merge."""
        try:
            self._create_new(path, member, archive)
        except FileExistsError:
            before = os.lstat(path).st_mode
            self._resolved = (b"", b"")  # what is replaced may be a symlink that led to the directory
            if not (member.isdir() and stat.S_ISDIR(before)):
                if stat.S_ISDIR(before):
                    shutil.rmtree(path)
                else:
                    os.unlink(path)
                self._create_new(path, member, archive)
                if member.isdir() and stat.S_ISCHR(before):
                    self._hide_below(path)
        self._dress(path, member)

    def _create_new(self, path: bytes, member: tarfile.TarInfo, archive: Archive) -> None:
        """Raises FileExistsError, nothing changed, when there is something at `path`."""
        if member.isreg() or member.issparse():
            self._file(path, member, archive)
        elif member.isdir():
            os.mkdir(path, 0o700)
            self.allocated += BLOCK
        elif member.issym():
            os.symlink(os.fsencode(member.linkname), path)
        elif member.islnk():
            os.link(_path(member.linkname), path, follow_symlinks=False)
            self.inodes -= 1
        elif member.isfifo():
            os.mkfifo(path, 0o600)
        elif member.isdev():
            kind = stat.S_IFCHR if member.ischr() else stat.S_IFBLK
            os.mknod(path, kind | 0o600, os.makedev(member.devmajor, member.devminor))
        else:
            raise LayerError(f"{member.name!r} is of an unknown type {member.type!r}")
        self.inodes += 1

    def _file(self, path: bytes, member: tarfile.TarInfo, archive: Archive) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            for offset, size in _extents(member):
                if offset:
                    os.lseek(fd, offset, os.SEEK_SET)
                archive.copy(fd, size)
                self.allocated += -(-size // BLOCK) * BLOCK
            if member.issparse():
                os.ftruncate(fd, member.size)
        finally:
            os.close(fd)

    def _dress(self, path: bytes, member: tarfile.TarInfo) -> None:
        """Owner before mode before attributes: chown(2) takes set-id bits and file capabilities away."""
        if member.islnk():
            return
        _set_owner_and_mode(path, member)
        if member.isdir() or member.isreg() or member.issparse():
            _set_attributes(path, member)
        self.implicit.discard(path)
        if member.isdir():
            self.times.append((path, _time(member)))
        else:
            _set_time(path, _time(member))


def _is_whiteout(path: bytes) -> bool:
    found = os.lstat(path)
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def _path(name: str) -> bytes:
    """The name as an absolute path without dots; chroot(2) would hold them anyway."""
    return os.path.normpath(b"/" + os.fsencode(name).lstrip(b"/"))


def _extents(member: tarfile.TarInfo) -> list[tuple[int, int]]:
    """Where the content goes: (offset, size), in the order of the archive."""
    if not member.issparse():
        return [(0, member.size)]
    extents: list[tuple[int, int]] = list(getattr(member, "sparse", None) or [])
    for offset, size in extents:
        if offset < 0 or size < 0 or offset + size > member.size:
            raise LayerError(f"{member.name!r} has a broken sparse map")
    return extents


def _set_owner_and_mode(path: bytes, member: tarfile.TarInfo) -> None:
    if not (0 <= member.uid < 0xFFFFFFFF and 0 <= member.gid < 0xFFFFFFFF):
        raise LayerError(f"{member.name!r} has the owner {member.uid}:{member.gid}")
    os.chown(path, member.uid, member.gid, follow_symlinks=False)
    if not member.issym():
        os.chmod(path, member.mode & 0o7777)


def _set_attributes(path: bytes, member: tarfile.TarInfo) -> None:
    """File capabilities, ACLs and user attributes; images do not steer overlayfs or security modules."""
    for key, value in member.pax_headers.items():
        name = key.removeprefix("SCHILY.xattr.")
        if name == key or name.startswith("user.overlay."):
            continue
        if name != "security.capability" and not name.startswith(("user.", "system.posix_acl_")):
            continue
        try:
            os.setxattr(path, os.fsencode(name), value.encode("utf-8", "surrogateescape"))
        except OSError as error:
            if name == "security.capability" or error.errno not in _NOT_STORED:
                raise


def _time(member: tarfile.TarInfo) -> int:
    """Nanoseconds, 0 for what is no time."""
    try:
        return int(float(member.mtime) * 1_000_000_000)
    except (OverflowError, ValueError):
        return 0


def _set_time(path: bytes, time: int) -> None:
    try:
        os.utime(path, ns=(time, time), follow_symlinks=False)
    except OverflowError:
        os.utime(path, ns=(0, 0), follow_symlinks=False)
