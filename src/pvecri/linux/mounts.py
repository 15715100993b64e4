# SPDX-License-Identifier: Apache-2.0
"""Mount system calls: thin, typed, without policy.

Every function raises OSError with the path it was about. Flags carry the kernel's names (mount(2),
mount_setattr(2), open_tree(2), umount2(2)). All need CAP_SYS_ADMIN except the ones that only read.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

MS_RDONLY: Final = 0x1
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_REMOUNT: Final = 0x20
MS_NOATIME: Final = 0x400
MS_BIND: Final = 0x1000
MS_MOVE: Final = 0x2000
MS_REC: Final = 0x4000
MS_UNBINDABLE: Final = 0x20000
MS_PRIVATE: Final = 0x40000
MS_SLAVE: Final = 0x80000
MS_SHARED: Final = 0x100000

MNT_DETACH: Final = 0x2
UMOUNT_NOFOLLOW: Final = 0x8

OPEN_TREE_CLONE: Final = 0x1
OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC

MOUNT_ATTR_RDONLY: Final = 0x1
MOUNT_ATTR_NOSUID: Final = 0x2
MOUNT_ATTR_NODEV: Final = 0x4
MOUNT_ATTR_NOEXEC: Final = 0x8
MOUNT_ATTR_IDMAP: Final = 0x100000

_AT_FDCWD: Final = -100
_AT_SYMLINK_NOFOLLOW: Final = 0x100
_AT_NO_AUTOMOUNT: Final = 0x800
_AT_EMPTY_PATH: Final = 0x1000
_AT_RECURSIVE: Final = 0x8000
_MOVE_MOUNT_F_EMPTY_PATH: Final = 0x4
_STATX_ATTR_MOUNT_ROOT: Final = 0x2000

# New system calls have one number on every architecture that Proxmox and Debian build for.
_SYS_OPEN_TREE: Final = 428
_SYS_MOVE_MOUNT: Final = 429
_SYS_MOUNT_SETATTR: Final = 442

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.statx.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)
_libc.syscall.restype = ctypes.c_long


class MountEntry(NamedTuple):
    """One line of /proc/self/mountinfo (proc_pid_mountinfo(5)).

    `peer_group` and `master` are 0 when the mount is not shared and no slave.
    """

    mount_id: int
    parent_id: int
    root: str
    mountpoint: Path
    options: tuple[str, ...]
    peer_group: int
    master: int
    fstype: str
    source: str
    super_options: str


def mount(source: str | Path, target: Path, fstype: str, flags: int = 0, data: str = "") -> None:
    """mount(2). `data` is limited to one page, its final NUL included."""
    result = _libc.mount(os.fsencode(source), os.fsencode(target), fstype.encode(), flags, data.encode() or None)
    _check(result, target)


def umount(target: Path, *, detach: bool) -> None:
    """umount2(2), never through a symlink. `detach` takes the mount out of the tree now and frees it when unused.

    OSError EINVAL when `target` is no mount point, EBUSY when it is in use and not detached.
    """
    flags = UMOUNT_NOFOLLOW | (MNT_DETACH if detach else 0)
    _check(_libc.umount2(os.fsencode(target), flags), target)


def bind(source: Path, target: Path, *, recursive: bool = True) -> None:
    """Show `source` at `target` too; `recursive` with all that is mounted below it."""
    mount(source, target, "", MS_BIND | (MS_REC if recursive else 0))


def make_private(path: Path, *, recursive: bool = False) -> None:
    """Mounts made below no longer go to peers, nor come from them."""
    mount("", path, "", MS_PRIVATE | (MS_REC if recursive else 0))


def make_shared(path: Path, *, recursive: bool = False) -> None:
    """Mounts made below go to peers and come from them."""
    mount("", path, "", MS_SHARED | (MS_REC if recursive else 0))


def make_slave(path: Path, *, recursive: bool = False) -> None:
    """Mounts come from the former peers, but go nowhere."""
    mount("", path, "", MS_SLAVE | (MS_REC if recursive else 0))


def set_attributes(path: Path, attributes: int, *, clear: int = 0, recursive: bool = False) -> None:
    """mount_setattr(2) on the mount at `path`: set and clear MOUNT_ATTR_* flags and leave the others alone."""
    flags = _AT_SYMLINK_NOFOLLOW | (_AT_RECURSIVE if recursive else 0)
    _mount_setattr(_AT_FDCWD, path, flags, _MountAttr(attributes, clear, 0, 0))


def make_readonly(path: Path, *, recursive: bool = False) -> None:
    """Nothing can be written through the mount at `path`."""
    set_attributes(path, MOUNT_ATTR_RDONLY, recursive=recursive)


def open_tree(path: Path, flags: int, *, recursive: bool = False) -> int:
    """open_tree(2): a file descriptor for the mount at `path`, with OPEN_TREE_CLONE for a detached copy of it.

    The caller closes it, which also unmounts a copy that was never attached.
    """
    flags |= OPEN_TREE_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    fd = _libc.syscall(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(path), ctypes.c_uint(flags))
    return _check(fd, path)


def mount_setattr(
    fd: int,
    *,
    attributes: int = 0,
    propagation: int = 0,
    idmap_userns_fd: int | None = None,
    recursive: bool = False,
    path: Path,
) -> None:
    """mount_setattr(2) on a descriptor of open_tree; `path` is for the error's text only.

    `propagation` is MS_SLAVE, MS_PRIVATE or MS_SHARED, 0 to leave it.

    With `idmap_userns_fd` the mount shows ids as that user namespace maps them. The mount must be detached and
    not idmapped yet; OSError EINVAL where its filesystem cannot be idmapped.
    """
    if idmap_userns_fd is not None:
        attributes |= MOUNT_ATTR_IDMAP
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    _mount_setattr(fd, path, flags, _MountAttr(attributes, 0, propagation, idmap_userns_fd or 0))


def move_mount(fd: int, target: Path) -> None:
    """move_mount(2): attach the detached mount `fd` at `target`."""
    result = _libc.syscall(
        _SYS_MOVE_MOUNT, fd, b"", _AT_FDCWD, os.fsencode(target), ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH)
    )
    _check(result, target)


def open_clone(
    source: Path, userns_fd: int | None = None, *, recursive: bool = False, readonly: bool = False
) -> int:
    """A descriptor of a detached clone of `source`, with the IDs of a user namespace if one is given.

    OSError EINVAL where the filesystem cannot be idmapped. The caller closes it. What is mounted below the
    source later shows in the clone, and nothing that is done to the clone shows at the source: a clone of a
    shared mount is its peer otherwise, and to unmount what lies below it unmounts it on the node.
    """
    attributes = MOUNT_ATTR_RDONLY if readonly else 0
    fd = open_tree(source, OPEN_TREE_CLONE, recursive=recursive)
    try:
        mount_setattr(
            fd,
            attributes=attributes,
            propagation=MS_SLAVE,
            idmap_userns_fd=userns_fd,
            recursive=recursive,
            path=source,
        )
    except BaseException:
        os.close(fd)
        raise
    return fd


def bind_clone(
    source: Path, target: Path, userns_fd: int | None = None, *, recursive: bool = False, readonly: bool = False
) -> None:
    """Show a clone of `source` (`open_clone`) at `target`: with a user namespace, what 0 owns there its root
    owns here.

    OSError EINVAL where the filesystem cannot be idmapped.
    """
    fd = open_clone(source, userns_fd, recursive=recursive, readonly=readonly)
    try:
        move_mount(fd, target)
    finally:
        os.close(fd)


def is_mountpoint(path: Path) -> bool:
    """Whether a mount is attached at `path`, bind mounts included; False when nothing is there.

    OSError for other causes. Costs one statx(2), not a walk through the mount table.
    """
    buffer = ctypes.create_string_buffer(256)
    result = _libc.statx(_AT_FDCWD, os.fsencode(path), _AT_SYMLINK_NOFOLLOW | _AT_NO_AUTOMOUNT, 0, buffer)
    try:
        _check(result, path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    (attributes,) = struct.unpack_from("=Q", buffer, 8)
    return bool(attributes & _STATX_ATTR_MOUNT_ROOT)


def mounts(containing: str = "") -> list[MountEntry]:
    """What is mounted in this mount namespace; only the lines that contain a text, which has no blanks, are
    parsed.
    """
    lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    return [parse_mountinfo(line) for line in lines if containing.encode() in line]


def parse_mountinfo(line: bytes) -> MountEntry:
    """One line of mountinfo; fields are separated by blanks, and blanks inside them are written in octal."""
    before, _, after = line.partition(b" - ")
    mount_id, parent_id, _device, root, mountpoint, options, *optional = before.split(b" ")
    fstype, source, super_options = after.split(b" ", 2)
    tags = dict(tag.split(b":", 1) for tag in optional if b":" in tag)
    return MountEntry(
        mount_id=int(mount_id),
        parent_id=int(parent_id),
        root=_unescape(root),
        mountpoint=Path(_unescape(mountpoint)),
        options=tuple(options.decode().split(",")),
        peer_group=int(tags.get(b"shared", 0)),
        master=int(tags.get(b"master", 0)),
        fstype=_unescape(fstype),
        source=_unescape(source),
        super_options=_unescape(super_options),
    )


def restrictions(path: Path) -> tuple[str, ...]:
    """Which of nosuid, nodev and noexec the mount has that `path` is on, by mount(8)'s names."""
    flags = os.statvfs(path).f_flag
    known = {"nosuid": os.ST_NOSUID, "nodev": os.ST_NODEV, "noexec": os.ST_NOEXEC}
    return tuple(name for name, flag in known.items() if flags & flag)


def _mountpoints_below(path: Path) -> list[Path]:
    """Where something is mounted at or below `path`.

    Asked at every removal, of a table that grows with the machine's containers: only lines that hold the path, as
    the table writes it (proc_pid_mountinfo(5)), are taken apart.
    """
    top = path.parent.resolve() / path.name
    needle = os.fsencode(top)
    for byte in b"\\ \t\n":
        needle = needle.replace(bytes([byte]), b"\\%03o" % byte)
    lines = (line for line in Path("/proc/self/mountinfo").read_bytes().splitlines() if needle in line)
    found = (parse_mountinfo(line).mountpoint for line in lines)
    return [mountpoint for mountpoint in found if mountpoint.is_relative_to(top)]


def umount_below(path: Path) -> None:
    """Detach everything that is mounted at or below `path`, the deepest first. Idempotent."""
    for mountpoint in sorted(_mountpoints_below(path), key=lambda each: len(each.parts), reverse=True):
        # Propagation may have taken a mount away together with one that was detached before it.
        with contextlib.suppress(FileNotFoundError), _ignore(errno.EINVAL):
            umount(mountpoint, detach=True)


def remove_tree(directory: Path) -> None:
    """Unmount all below a directory and remove it; a mount that stays is never entered. Idempotent.

    OSError (EBUSY) when something is still mounted below: what is mounted there belongs to someone else.
    """
    umount_below(directory)
    if _mountpoints_below(directory):
        raise OSError(errno.EBUSY, "something is mounted below", str(directory))
    shutil.rmtree(directory, ignore_errors=True)


def ensure_shared(path: Path) -> None:
    """Have mounts made below `path` show in mount namespaces that are cloned from this one later. Idempotent.

    The directory is bound on itself when it is no mount point, so that the rest of the tree keeps its propagation.
    Where that is shared, as it is under systemd, the two part: else each mount would be made on both.
    """
    if not is_mountpoint(path):
        bind(path, path, recursive=True)
        make_private(path)
    make_shared(path)


class _MountAttr(NamedTuple):
    """struct mount_attr."""

    attr_set: int
    attr_clr: int
    propagation: int
    userns_fd: int


def _mount_setattr(fd: int, path: Path, flags: int, request: _MountAttr) -> None:
    """On `fd` with AT_EMPTY_PATH in `flags`, else on the path."""
    packed = struct.pack("=QQQQ", *request)
    name = b"" if flags & _AT_EMPTY_PATH else os.fsencode(path)
    size = ctypes.c_size_t(len(packed))
    _check(_libc.syscall(_SYS_MOUNT_SETATTR, fd, name, ctypes.c_uint(flags), packed, size), path)


def _check(result: int, path: Path) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    return result


@contextlib.contextmanager
def _ignore(number: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != number:
            raise


def _unescape(field: bytes) -> str:
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda match: bytes((int(match[1], 8),)), field))
