# SPDX-License-Identifier: Apache-2.0
"""Mount system calls: thin, typed, without policy.

Every function raises OSError with its path. Flags have the kernel's names (mount(2), mount_setattr(2),
open_tree(2), umount2(2)). All that change something need CAP_SYS_ADMIN.
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

from pvecri.linux import libc

MS_RDONLY: Final = 0x1
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
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
MOUNT_ATTR_IDMAP: Final = 0x100000

_AT_FDCWD: Final = -100
_AT_SYMLINK_NOFOLLOW: Final = 0x100
_AT_NO_AUTOMOUNT: Final = 0x800
_AT_EMPTY_PATH: Final = 0x1000
_AT_RECURSIVE: Final = 0x8000
_MOVE_MOUNT_F_EMPTY_PATH: Final = 0x4
_STATX_ATTR_MOUNT_ROOT: Final = 0x2000

# From 424 (pidfd_send_signal) on a system call has one number on all architectures but alpha.
# They are called by number: glibc has functions for them since 2.36 only.
_SYS_OPEN_TREE: Final = 428
_SYS_MOVE_MOUNT: Final = 429
_SYS_MOUNT_SETATTR: Final = 442


class MountEntry(NamedTuple):
    """One line of /proc/self/mountinfo (proc_pid_mountinfo(5)).

    `peer_group` is 0 for a mount that is not shared, `master` for one that is not a slave.
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
    arguments = (os.fsencode(source), os.fsencode(target), fstype.encode(), ctypes.c_ulong(flags))
    libc.call("mount", *arguments, data.encode() or None, path=target)


def umount(target: Path, *, detach: bool) -> None:
    """umount2(2), never through a symlink. `detach` takes the mount out of the tree now and frees it when unused.

    OSError EINVAL if `target` is no mount point, EBUSY if it is in use and not detached.
    """
    flags = UMOUNT_NOFOLLOW | (MNT_DETACH if detach else 0)
    libc.call("umount2", os.fsencode(target), flags, path=target)


def detach(target: Path) -> None:
    """Detach every mount at `target`, stacked ones too, with what is mounted below. Idempotent: none is no error.

    It neither reads the mount table, which grows with the node's pods, nor asks the mounted filesystem, which
    may hang.
    """
    while True:
        try:
            umount(target, detach=True)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
                return
            raise


def bind(source: Path, target: Path, *, recursive: bool = True) -> None:
    """Bind mount `source` at `target`; `recursive` with the mounts below it."""
    mount(source, target, "", MS_BIND | (MS_REC if recursive else 0))


def make_private(path: Path) -> None:
    """Propagate no mount to peers or from them."""
    mount("", path, "", MS_PRIVATE)


def make_shared(path: Path) -> None:
    """Propagate mounts to peers and from them."""
    mount("", path, "", MS_SHARED)


def make_slaves(path: Path) -> None:
    """Propagate no mount at or below `path` to peers, and still those of the peers to here."""
    mount("", path, "", MS_SLAVE | MS_REC)


def open_tree(path: Path, flags: int, *, recursive: bool = False) -> int:
    """open_tree(2): a file descriptor for the mount at `path`, with OPEN_TREE_CLONE for a detached copy of it.

    The caller closes it, which also unmounts a copy that was never attached.
    """
    flags |= OPEN_TREE_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    return libc.syscall(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(path), ctypes.c_uint(flags), path=path)


def mount_setattr(
    fd: int,
    *,
    attributes: int = 0,
    propagation: int = 0,
    idmap_userns_fd: int | None = None,
    recursive: bool = False,
    path: Path,
) -> None:
    """mount_setattr(2) on a descriptor of open_tree: set MOUNT_ATTR_* flags; `path` is for the error's text only.

    `propagation` is MS_SLAVE, MS_PRIVATE or MS_SHARED, 0 to leave it.

    `idmap_userns_fd` makes the mount an idmapped one of that user namespace. It must be detached and not idmapped
    yet; OSError EINVAL if its filesystem does not support it.
    """
    if idmap_userns_fd is not None:
        attributes |= MOUNT_ATTR_IDMAP
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    # struct mount_attr { u64 attr_set, attr_clr, propagation, userns_fd }; the last is for MOUNT_ATTR_IDMAP.
    request = struct.pack("=QQQQ", attributes, 0, propagation, idmap_userns_fd or 0)
    size = ctypes.c_size_t(len(request))
    libc.syscall(_SYS_MOUNT_SETATTR, fd, b"", ctypes.c_uint(flags), request, size, path=path)


def move_mount(fd: int, target: Path) -> None:
    """move_mount(2): attach the detached mount `fd` at `target`."""
    flags = ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH)
    libc.syscall(_SYS_MOVE_MOUNT, fd, b"", _AT_FDCWD, os.fsencode(target), flags, path=target)


def open_clone(
    source: Path, userns_fd: int | None = None, *, recursive: bool = False, readonly: bool = False
) -> int:
    """A descriptor of a detached clone of `source`, idmapped if a user namespace is given; the caller closes it.

    OSError EINVAL if the filesystem does not support idmapped mounts. The clone is a slave of the source: later
    mounts below the source appear in it, and nothing propagates back. As a peer, which a clone of a shared mount
    is by default, unmounting below the clone would unmount on the node as well.
    """
    attributes = MOUNT_ATTR_RDONLY if readonly else 0
    fd = open_tree(source, OPEN_TREE_CLONE, recursive=recursive)  # closing it unmounts the detached clone
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
    """Attach a clone of `source` (`open_clone`) at `target`."""
    fd = open_clone(source, userns_fd, recursive=recursive, readonly=readonly)
    try:
        move_mount(fd, target)
    finally:
        os.close(fd)


def is_mountpoint(path: Path) -> bool:
    """Whether a mount, bind mounts included, is attached at `path`; False if there is no such path.

    One statx(2): the mount table grows with the node's containers.
    """
    # struct statx: stx_attributes is at offset 8 and is returned whatever the mask; STATX_ATTR_MOUNT_ROOT needs
    # Linux 5.8.
    buffer = ctypes.create_string_buffer(256)
    flags = _AT_SYMLINK_NOFOLLOW | _AT_NO_AUTOMOUNT
    try:
        libc.call("statx", _AT_FDCWD, os.fsencode(path), flags, ctypes.c_uint(0), buffer, path=path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    (attributes,) = struct.unpack_from("=Q", buffer, 8)
    return bool(attributes & _STATX_ATTR_MOUNT_ROOT)


def mounts(containing: str = "") -> list[MountEntry]:
    """The mount table; only lines that contain a text, which must be without blanks, are parsed."""
    lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    return [parse_mountinfo(line) for line in lines if containing.encode() in line]


def parse_mountinfo(line: bytes) -> MountEntry:
    """One line of mountinfo; blanks inside a field are octal escapes."""
    before, _, after = line.partition(b" - ")
    # Any number of optional fields stands before the separator, so the fields after it have no fixed position.
    mount_id, parent_id, _device, root, mountpoint, options, *optional = before.split(b" ")
    fstype, source, super_options = after.split(b" ", 2)
    # One of them, `unbindable`, has no value.
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
    """Which of the options nosuid, nodev and noexec the mount has that `path` is on."""
    flags = os.statvfs(path).f_flag
    known = {"nosuid": os.ST_NOSUID, "nodev": os.ST_NODEV, "noexec": os.ST_NOEXEC}
    return tuple(name for name, flag in known.items() if flags & flag)


def umount_below(path: Path) -> None:
    """Detach all mounts at or below `path`, wherever they are, the deepest first. Idempotent.

    Reads the mount table; `detach` does not.
    """
    for mountpoint in sorted(_mountpoints_below(path), key=lambda each: len(each.parts), reverse=True):
        # EINVAL: propagation has unmounted it together with an earlier one. EACCES: in an idmapped mount a
        # directory of IDs that it lacks is closed to root, too; what is below goes with the mount above.
        with contextlib.suppress(FileNotFoundError), _ignore(errno.EINVAL, errno.EACCES):
            # Detached: a process of a container that is being removed may still have files open in it (EBUSY).
            umount(mountpoint, detach=True)


def _mountpoints_below(path: Path) -> list[Path]:
    # The table has resolved paths. The last part is not resolved, for umount2 does not follow it either.
    top = path.parent.resolve() / path.name
    needle = os.fsencode(top)  # in the table's escaped form (proc_pid_mountinfo(5)); the backslash first
    for byte in b"\\ \t\n":
        needle = needle.replace(bytes([byte]), b"\\%03o" % byte)
    lines = (line for line in Path("/proc/self/mountinfo").read_bytes().splitlines() if needle in line)
    found = (parse_mountinfo(line).mountpoint for line in lines)
    return [mountpoint for mountpoint in found if mountpoint.is_relative_to(top)]


def remove_tree(directory: Path) -> None:
    """Unmount all mounts at and below a directory and remove it. Idempotent.

    OSError EBUSY, and nothing is removed, if a mount is left: its files belong to someone else. Mounts are looked
    for at each of the directory's entries, not in the mount table, which grows with the node's containers.
    """
    _detach_tree(directory)
    shutil.rmtree(directory, ignore_errors=True)


def _detach_tree(directory: Path) -> None:
    """Detach what is mounted at a directory, and then at all that it has; no symlink is followed."""
    _detach_or_refuse(directory)
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):  # also of a symlink (open(2))
        return
    try:
        entries = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in os.scandir(fd)]
    finally:
        os.close(fd)
    for name, is_directory in entries:
        if is_directory:
            _detach_tree(directory / name)
        else:
            _detach_or_refuse(directory / name)


def _detach_or_refuse(path: Path) -> None:
    detach(path)
    if is_mountpoint(path):
        raise OSError(errno.EBUSY, "a mount is left", str(path))


def ensure_shared(path: Path) -> None:
    """Propagate mounts below `path` to mount namespaces that are cloned from this one later. Idempotent.

    A directory that is not a mount point is bound on itself first, to leave its parent mount's propagation alone.
    If that is shared, as under systemd, the bind mount is its peer: it is made private before it is shared, else
    each mount would appear in both.
    """
    if not is_mountpoint(path):
        bind(path, path, recursive=True)
        make_private(path)
    make_shared(path)


def is_bound_on_itself(path: Path) -> bool:
    """Whether a mount is attached at `path` that shows the directory below it, as `ensure_shared` makes it."""
    try:
        fd = open_tree(path.parent, OPEN_TREE_CLONE)  # a copy of that mount alone, without those below
    except OSError:  # EINVAL: it is unbindable
        return False
    try:
        covered = os.stat(path.name, dir_fd=fd, follow_symlinks=False)
        return is_mountpoint(path) and os.path.samestat(covered, path.stat())
    except FileNotFoundError:
        return False
    finally:
        os.close(fd)


@contextlib.contextmanager
def _ignore(*numbers: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in numbers:
            raise


def _unescape(field: bytes) -> str:
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda match: bytes((int(match[1], 8),)), field))
