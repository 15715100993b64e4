# SPDX-License-Identifier: Apache-2.0
"""btrfs ioctls: subvolumes, snapshots, quotas and usage (linux/btrfs.h, linux/btrfs_tree.h).

An ioctl takes microseconds, starting btrfs(8) milliseconds. Every function raises OSError with its path.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

_MAGIC: Final = 0x94


def _code(direction: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | _MAGIC << 8 | number


_WRITE, _READ = 1, 2
_SUBVOL_CREATE: Final = _code(_WRITE, 14, 4096)
_SNAP_CREATE_V2: Final = _code(_WRITE, 23, 4096)
_SNAP_DESTROY: Final = _code(_WRITE, 15, 4096)
_SUBVOL_GETFLAGS: Final = _code(_READ, 25, 8)
_SUBVOL_SETFLAGS: Final = _code(_WRITE, 26, 8)
_TREE_SEARCH_V2: Final = _code(_READ | _WRITE, 17, 112)
_QGROUP_LIMIT: Final = _code(_READ, 43, 48)
_GET_SUBVOL_INFO: Final = _code(_READ, 60, 504)

_RDONLY: Final = 1 << 1  # BTRFS_SUBVOL_RDONLY
_FIRST_INODE: Final = 256  # BTRFS_FIRST_FREE_OBJECTID
_INODE_ITEM, _EXTENT_DATA = 1, 108
_MAX: Final = (1 << 64) - 1
_SEARCH_BUFFER: Final = 1 << 18
_LIMIT_MAX_EXCLUSIVE: Final = 1 << 1  # BTRFS_QGROUP_LIMIT_MAX_EXCL


class Written(NamedTuple):
    """Bytes of file extents and inodes that a snapshot has beyond its source."""

    bytes: int
    inodes: int


def create_subvolume(path: Path) -> None:
    """Create an empty subvolume; FileExistsError if `path` exists."""
    with _opened(path.parent) as fd:
        _ioctl(fd, _SUBVOL_CREATE, struct.pack("=q4088s", 0, os.fsencode(path.name)), path)


def snapshot(source: Path, path: Path) -> None:
    """Create a writable snapshot of the subvolume `source`; FileExistsError if `path` exists."""
    with _opened(path.parent) as fd, _opened(source) as source_fd:
        request = struct.pack("=qQQ32s4040s", source_fd, 0, 0, b"", os.fsencode(path.name))
        _ioctl(fd, _SNAP_CREATE_V2, request, path)


def set_readonly(path: Path, *, readonly: bool) -> None:
    """Set or clear a subvolume's read-only flag. Idempotent."""
    with _opened(path) as fd:
        (flags,) = struct.unpack("=Q", fcntl.ioctl(fd, _SUBVOL_GETFLAGS, bytes(8)))
        wanted = flags | _RDONLY if readonly else flags & ~_RDONLY
        if wanted != flags:
            _ioctl(fd, _SUBVOL_SETFLAGS, struct.pack("=Q", wanted), path)


def is_btrfs(path: Path) -> bool:
    """Whether a directory is on btrfs."""
    with _opened(path) as fd:
        try:
            # Tested by an ioctl of btrfs, for os.statvfs has no f_type.
            _ioctl(fd, _GET_SUBVOL_INFO, bytes(504), path)
        except OSError as error:
            if error.errno == errno.ENOTTY:
                return False
            raise
    return True


def is_subvolume(path: Path) -> bool:
    """Whether `path`, on btrfs, is a subvolume's top directory: only those have inode 256."""
    found = path.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_ino == _FIRST_INODE


def delete_subvolume(path: Path) -> None:
    """Delete a subvolume with those nested in it. The kernel's cleaner frees its space asynchronously."""
    try:
        _destroy(path)
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        # A subvolume nested in a read-only one cannot be deleted (EROFS).
        set_readonly(path, readonly=False)
        for nested in _nested(path):
            delete_subvolume(nested)
        _destroy(path)


def limit_written(path: Path, size: int) -> None:
    """Limit a subvolume's exclusive bytes. OSError ENOTCONN if quotas are not enabled on the filesystem."""
    with _opened(path) as fd:
        # btrfs_ioctl_qgroup_limit_args: qgroup 0 is that of the descriptor's subvolume.
        _ioctl(fd, _QGROUP_LIMIT, struct.pack("=QQQQQQ", 0, _LIMIT_MAX_EXCLUSIVE, 0, size, 0, 0), path)


def written(path: Path) -> Written:
    """Usage of a snapshot beyond its source: of the tree, only leaves of a later generation are read.

    Dirty pages are counted after the next commit only.
    """
    size = inodes = 0
    with _opened(path) as fd:
        info = _ioctl(fd, _GET_SUBVOL_INFO, bytes(504), path)
        (made,) = struct.unpack_from("=Q", info, 352)  # otransid: the transaction that created it
        extents: dict[int, int] = {}
        # A leaf that was rewritten has old items, too, so each item's own generation is compared.
        for kind, item in _items_since(fd, made + 1, path):
            if kind == _INODE_ITEM:
                (generation,) = struct.unpack_from("=Q", item)
                inodes += generation > made
            elif kind == _EXTENT_DATA:
                size += _inline_bytes(item, made)
                extents.update(_new_extent(item, made))
    return Written(size + sum(extents.values()), inodes)


def _inline_bytes(item: bytes, made: int) -> int:
    """The size of an inline extent, which a small file has in the tree itself (struct btrfs_file_extent_item)."""
    generation, size = struct.unpack_from("=QQ", item)
    return int(size) if generation > made and item[20] == 0 else 0


def _new_extent(item: bytes, made: int) -> dict[int, int]:
    """A new extent's disk address and size. Reflinked files share an address; a hole has address 0."""
    (generation,) = struct.unpack_from("=Q", item)
    if generation <= made or item[20] == 0:
        return {}
    # disk_bytenr and disk_num_bytes: the size on the disk, after compression.
    place, size = struct.unpack_from("=QQ", item, 21)
    return {place: size} if place else {}


def _items_since(fd: int, generation: int, path: Path) -> Iterator[tuple[int, bytes]]:
    """Type and content of the items in leaves that were written in `generation` or later."""
    objectid, kind, offset = _FIRST_INODE, 0, 0
    while True:
        key = struct.pack(
            # struct btrfs_ioctl_search_key. Tree 0 is the subvolume of the descriptor. min_transid skips subtrees
            # that are older.
            "=QQQQQQQIIIIQQQQ",
            *(0, objectid, _MAX, offset, _MAX, generation, _MAX, kind, _EXTENT_DATA, 1 << 20, 0, 0, 0, 0, 0),
        )
        request = key + struct.pack("=Q", _SEARCH_BUFFER) + bytes(_SEARCH_BUFFER)
        found = _ioctl(fd, _TREE_SEARCH_V2, request, path)
        (count,) = struct.unpack_from("=I", found, 64)
        if count == 0:
            return
        position = 112
        for _ in range(count):
            _transid, objectid, offset, kind, length = struct.unpack_from("=QQQII", found, position)
            yield kind, bytes(found[position + 32 : position + 32 + length])
            position += 32 + length
        # Resume after the last key: keys are ordered by (objectid, type, offset).
        if offset < _MAX:
            offset += 1
        elif kind < 255:
            kind, offset = kind + 1, 0
        else:
            objectid, kind, offset = objectid + 1, 0, 0


def _destroy(path: Path) -> None:
    with _opened(path.parent) as fd:
        _ioctl(fd, _SNAP_DESTROY, struct.pack("=q4088s", 0, os.fsencode(path.name)), path)


def _nested(path: Path) -> list[Path]:
    """The subvolumes below a path, without those nested in them."""
    found: list[Path] = []
    for directory, names, _ in os.walk(path):
        inside = [Path(directory, name) for name in names]
        volumes = [each for each in inside if is_subvolume(each)]
        found += volumes
        names[:] = [each.name for each in inside if each not in volumes]
    return found


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _ioctl(fd: int, code: int, request: bytes, path: Path) -> bytearray:
    """The request as the kernel has modified it."""
    buffer = bytearray(request)
    try:
        fcntl.ioctl(fd, code, buffer)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    return buffer
