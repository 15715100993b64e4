# SPDX-License-Identifier: Apache-2.0
"""A layer by itself, from archive members to files. Standard library only; runs confined (worker.py).

Whiteouts (OCI image-spec, layer.md) are stored in overlayfs' form: a whiteout is a character device 0/0, an opaque
directory has the attribute trusted.overlay.opaque.
"""

# Names in archives are bytes, which pathlib does not take.
# ruff: noqa: PTH101, PTH102, PTH106, PTH108, PTH208, PTH211
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
LAST_MAPPED_ID: Final = 65_535
"""The largest ID in a user namespace of the usual size."""
MAX_HIGH_IDS: Final = 1000

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
_UNSUPPORTED = frozenset({errno.ENOTSUP, errno.EPERM})


@dataclass
class LayerTree:
    """Extracts members below /, the layer's empty directory after chroot(2); counts their disk usage."""

    max_size: int
    max_entries: int
    size: int = 0
    allocated: int = BLOCK
    inodes: int = 1
    entries: int = 0
    times: list[tuple[bytes, int]] = field(default_factory=list)
    implicit: set[bytes] = field(default_factory=lambda: {b"/"})
    high_ids: set[int] = field(default_factory=set)
    """Owners and groups above LAST_MAPPED_ID, MAX_HIGH_IDS of them at most."""

    _lower_links: dict[bytes, int] = field(default_factory=dict)
    """Symlinks of the layers below, with their inodes."""

    _resolved: tuple[bytes, bytes] = (b"", b"")
    """The last member's directory in the archive, and its path without symlinks: the next is often in it, too."""

    def add(self, member: tarfile.TarInfo, archive: Archive) -> None:
        """Create one member with its metadata, or apply it if it is a whiteout."""
        self._count(member)
        path = self._resolve(_path(member.name))
        name = path.rpartition(b"/")[2]
        if name.startswith(WHITEOUT):
            self._with_parents(path, lambda: self._whiteout(path, name))
        elif path == b"/":
            if member.isdir():  # anything else of that name is ignored, as by containerd
                self._apply_metadata(path, member)
        else:
            self._with_parents(path, lambda: self._create(path, member, archive))

    def add_lower_links(self, links: dict[str, str]) -> None:
        """Create symlinks of the layers below, which `finish` removes: members below them are to follow them."""
        for name, target in sorted(links.items()):
            self._add_lower_link(_path(name), os.fsencode(target))

    def finish(self) -> None:
        """Apply what has to come last."""
        for path, inode in self._lower_links.items():
            self._remove_lower_link(path, inode)
        # Directories' times come last: creating files in a directory changes its time.
        for path, time in reversed(self.times):
            _set_time(path, time)

    def _add_lower_link(self, path: bytes, target: bytes) -> None:
        self._with_parents(path, lambda: os.symlink(target, path))
        self._lower_links[path] = os.lstat(path).st_ino

    def _remove_lower_link(self, path: bytes, inode: int) -> None:
        try:
            found = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return
        if not stat.S_ISLNK(found.st_mode) or found.st_ino != inode:
            return  # a member has replaced it
        os.unlink(path)
        above = path.rpartition(b"/")[0]
        while above in self.implicit and not os.listdir(above) and not _is_opaque(above):
            os.rmdir(above)  # it was made for the link
            self.implicit.remove(above)
            self.inodes -= 1
            self.allocated -= BLOCK
            above = above.rpartition(b"/")[0]

    def _count(self, member: tarfile.TarInfo) -> None:
        if member.size < 0:
            raise LayerError(f"{member.name!r} has {member.size} bytes")
        self.entries += 1
        self.size += member.size
        if member.uid > LAST_MAPPED_ID or member.gid > LAST_MAPPED_ID:
            ids = self.high_ids | {each for each in (member.uid, member.gid) if each > LAST_MAPPED_ID}
            if len(ids) <= MAX_HIGH_IDS:
                self.high_ids = ids
        if self.entries > self.max_entries:
            raise LayerError(f"it has more than {self.max_entries} entries (images.max_layer_entries)")
        if self.size > self.max_size:
            raise LayerError(f"its files are larger than {self.max_size} bytes (images.max_layer_size)")

    def _resolve(self, path: bytes) -> bytes:
        """The path without symlinks above its last part, whether or not their targets exist.

        With `lib -> usr/lib` a layer may have `lib/x` if only a lower layer has `usr/lib`: it is `usr/lib/x`.
        """
        directory, _, name = path.rpartition(b"/")
        if directory != self._resolved[0]:
            self._resolved = (directory, os.path.realpath(directory or b"/").rstrip(b"/"))
        return self._resolved[1] + b"/" + name

    def _with_parents(self, path: bytes, create: Callable[[], None]) -> None:
        try:
            create()
        except (FileNotFoundError, NotADirectoryError):  # the archive left the directories above out, or hid one
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
                # The layer hides the lower layers' directory and then has files in it: a new, opaque one is both.
                os.unlink(parent)
                os.mkdir(parent, 0o755)
                self._hide_below(parent)
            else:
                self.implicit.add(parent)
            made += 1
        self.inodes += made
        self.allocated += made * BLOCK
        return made

    def _whiteout(self, path: bytes, name: bytes) -> None:
        parent = path[: -len(name)]
        if name == OPAQUE:
            self._hide_below(parent)
        elif not name.startswith(WHITEOUT + WHITEOUT):  # else aufs' own files, such as .wh..wh.plnk
            hidden = parent + name[len(WHITEOUT) :]
            if hidden[len(parent) :] in {b"", b".", b".."}:
                raise LayerError(f"the whiteout {os.fsdecode(path)!r} has no name")
            self._hide(hidden)

    def _hide(self, path: bytes) -> None:
        try:
            os.mknod(path, stat.S_IFCHR, 0)
        except FileExistsError:
            # The layer replaces the entry: its own one hides the lower, but a directory must not merge with it.
            if stat.S_ISDIR(os.lstat(path).st_mode):
                self._hide_below(path)
                self.implicit.discard(path)  # nothing that lower layers have there counts

    def _hide_below(self, directory: bytes) -> None:
        os.setxattr(directory, b"trusted.overlay.opaque", b"y")

    def _create(self, path: bytes, member: tarfile.TarInfo, archive: Archive) -> None:
        """A later member of the same name replaces an earlier one; directories merge."""
        try:
            self._create_new(path, member, archive)
        except FileExistsError:
            before = os.lstat(path).st_mode
            self._resolved = (b"", b"")  # the replaced entry may be a symlink on the path
            if not (member.isdir() and stat.S_ISDIR(before)):
                if stat.S_ISDIR(before):
                    shutil.rmtree(path)
                else:
                    os.unlink(path)
                self._create_new(path, member, archive)
                # The replaced entry may have been a whiteout: lower layers' files must stay hidden.
                if member.isdir() and stat.S_ISCHR(before):
                    self._hide_below(path)
        self._apply_metadata(path, member)

    def _create_new(self, path: bytes, member: tarfile.TarInfo, archive: Archive) -> None:
        """Raises FileExistsError, and changes nothing, if `path` exists."""
        if member.isreg() or member.issparse():
            self._file(path, member, archive)
        elif member.isdir():
            os.mkdir(path, 0o700)  # until its metadata is applied
            self.allocated += BLOCK
        elif member.issym():
            os.symlink(os.fsencode(member.linkname), path)
        elif member.islnk():
            os.link(_path(member.linkname), path, follow_symlinks=False)
            self.inodes -= 1  # a link is not an inode
        elif member.isfifo():
            os.mkfifo(path, 0o600)
        elif member.isdev():
            kind = stat.S_IFCHR if member.ischr() else stat.S_IFBLK
            os.mknod(path, kind | 0o600, os.makedev(member.devmajor, member.devminor))
        else:
            raise LayerError(f"{member.name!r} is of an unknown type {member.type!r}")
        self.inodes += 1

    def _file(self, path: bytes, member: tarfile.TarInfo, archive: Archive) -> None:
        # O_EXCL: no FIFO, device or link that the archive has made before is ever opened (decision 0012).
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

    def _apply_metadata(self, path: bytes, member: tarfile.TarInfo) -> None:
        if member.islnk():
            return
        # Owner, then mode, then attributes: chown(2) clears set-user-ID bits and file capabilities.
        _set_owner_and_mode(path, member)
        if member.isdir() or member.isreg() or member.issparse():
            _set_attributes(path, member)
        self.implicit.discard(path)
        if member.isdir():
            self.times.append((path, _time(member)))
        else:
            _set_time(path, _time(member))


def _is_opaque(directory: bytes) -> bool:
    return b"trusted.overlay.opaque" in map(os.fsencode, os.listxattr(directory))


def _is_whiteout(path: bytes) -> bool:
    found = os.lstat(path)
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def _path(name: str) -> bytes:
    """The name as an absolute path without dots."""
    return os.path.normpath(b"/" + os.fsencode(name).lstrip(b"/"))


def _extents(member: tarfile.TarInfo) -> list[tuple[int, int]]:
    """The file's data extents, (offset, size), in the order of the archive."""
    if not member.issparse():
        return [(0, member.size)]
    extents: list[tuple[int, int]] = list(getattr(member, "sparse", None) or [])
    for offset, size in extents:
        if offset < 0 or size < 0 or offset + size > member.size:
            raise LayerError(f"{member.name!r} has a broken sparse map")
    return extents


def _set_owner_and_mode(path: bytes, member: tarfile.TarInfo) -> None:
    if not (0 <= member.uid < 0xFFFFFFFF and 0 <= member.gid < 0xFFFFFFFF):  # -1 is "unchanged" to chown(2)
        raise LayerError(f"{member.name!r} has the invalid owner {member.uid}:{member.gid}")
    os.chown(path, member.uid, member.gid, follow_symlinks=False)
    if not member.issym():  # Linux has no modes of symlinks
        os.chmod(path, member.mode & 0o7777)


def _set_attributes(path: bytes, member: tarfile.TarInfo) -> None:
    """File capabilities, ACLs and user.*. Not trusted.overlay.* and security labels, which the node decides on."""
    for key, value in member.pax_headers.items():
        name = key.removeprefix("SCHILY.xattr.")
        # user.overlay.* are overlayfs' own marks if it is mounted with `userxattr`.
        if name == key or name.startswith("user.overlay."):
            continue
        if name != "security.capability" and not name.startswith(("user.", "system.posix_acl_")):
            continue
        try:
            os.setxattr(path, os.fsencode(name), value.encode("utf-8", "surrogateescape"))
        except OSError as error:
            if name == "security.capability" or error.errno not in _UNSUPPORTED:
                raise  # a program without its capabilities would fail at run time


def _time(member: tarfile.TarInfo) -> int:
    """Nanoseconds since the epoch; 0 for NaN and infinity."""
    try:
        return int(float(member.mtime) * 1_000_000_000)
    except (OverflowError, ValueError):
        return 0


def _set_time(path: bytes, time: int) -> None:
    try:
        os.utime(path, ns=(time, time), follow_symlinks=False)
    except OverflowError:  # no time_t
        os.utime(path, ns=(0, 0), follow_symlinks=False)
