# SPDX-License-Identifier: Apache-2.0
"""The helper program that unpacks layers: standard library only, started once a pull.

Each line of its standard input is a JSON list of jobs; each job is answered by a line of JSON on standard output.
Every job gets a process of its own, as many at a time as there are CPUs. That process chroots into the layer's
directory before it reads the first byte of the archive, so that no name and no link in it, however made, leads
out; its address space is limited; and it opens only files that it has just created.

A layer becomes the form that overlayfs knows: a whiteout is a character device 0/0, an opaque directory has the
attribute trusted.overlay.opaque. See OCI image-spec, layer.md.
"""

# Names in archives are bytes, which pathlib does not take.
# ruff: noqa: PTH101, PTH102, PTH108, PTH211
from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import shutil
import signal
import stat
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

from pvecri.images.archive import Archive, LayerError, decompressed, members

BLOCK: Final = 4096
MAX_MEMORY: Final = 1 << 30

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_NOT_STORED = frozenset({errno.ENOTSUP, errno.EPERM})
_PR_SET_PDEATHSIG: Final = 1
_LOCK: Final = os.memfd_create("answers")


# -- from the archive to the directory -------------------------------------------------------------------------


@dataclass
class Tree:
    """Writes members below /, which is the layer's directory by then; counts what they take."""

    max_size: int
    max_entries: int
    size: int = 0
    allocated: int = BLOCK
    inodes: int = 1
    entries: int = 0
    times: list[tuple[bytes, int]] = field(default_factory=list)
    implicit: set[bytes] = field(default_factory=lambda: {b"/"})

    def add(self, member: tarfile.TarInfo, archive: Archive) -> None:
        """Create one member, with all that its header says of it."""
        self._count(member)
        path = _path(member.name)
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
        self.entries += 1
        self.size += max(member.size, 0)
        if self.entries > self.max_entries:
            raise LayerError(f"it has more than {self.max_entries} entries (images.max_layer_entries)")
        if self.size > self.max_size:
            raise LayerError(f"its files are larger than {self.max_size} bytes (images.max_layer_size)")

    def _with_parents(self, path: bytes, create: Callable[[], None]) -> None:
        """Archives may leave out the directories above a file."""
        try:
            create()
        except FileNotFoundError:
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
                continue
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
            os.setxattr(parent, b"trusted.overlay.opaque", b"y")
        elif not name.startswith(_WHITEOUT + _WHITEOUT):
            hidden = parent + name[len(_WHITEOUT) :]
            if hidden[len(parent) :] in {b"", b".", b".."}:
                raise LayerError(f"the whiteout {os.fsdecode(path)!r} names nothing")
            try:
                os.mknod(hidden, stat.S_IFCHR, 0)
            except FileExistsError:
                # The layer puts something of its own in the place of what it removes.
                if stat.S_ISDIR(os.lstat(hidden).st_mode):
                    os.setxattr(hidden, b"trusted.overlay.opaque", b"y")

    def _create(self, path: bytes, member: tarfile.TarInfo, archive: Archive) -> None:
        """A later member of the same name takes the place of an earlier one, except directories, which merge."""
        try:
            self._create_new(path, member, archive)
        except FileExistsError:
            before = os.lstat(path).st_mode
            if not (member.isdir() and stat.S_ISDIR(before)):
                if stat.S_ISDIR(before):
                    shutil.rmtree(path)
                else:
                    os.unlink(path)
                self._create_new(path, member, archive)
                if member.isdir() and stat.S_ISCHR(before):
                    os.setxattr(path, b"trusted.overlay.opaque", b"y")
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


# -- jobs and processes ----------------------------------------------------------------------------------------


def unpack(job: dict[str, Any]) -> dict[str, Any]:
    """Confine this process to the layer's directory and unpack the blob there. Does not come back out."""
    chunks = decompressed(os.open(job["blob"], os.O_RDONLY | os.O_CLOEXEC))
    os.chroot(job["directory"])
    os.chdir("/")
    os.chmod("/", 0o755)
    archive = Archive(chunks, job["max_size"])
    tree = Tree(job["max_size"], job["max_entries"])
    for member in members(archive):
        tree.add(member, archive)
    tree.finish()
    implicit = [path.decode("utf-8", "replace").lstrip("/") or "." for path in sorted(tree.implicit)]
    return {"diff_id": archive.digest(), "bytes": tree.allocated, "inodes": tree.inodes, "implicit": implicit}


def _answer(number: int, result: dict[str, Any]) -> None:
    """A line by itself: the processes share the pipe, so each locks it."""
    line = memoryview(json.dumps({"job": number, **result}).encode() + b"\n")
    os.lockf(_LOCK, os.F_LOCK, 0)
    while line:
        line = line[os.write(1, line) :]
    os.lockf(_LOCK, os.F_ULOCK, 0)


def _child(number: int, job: dict[str, Any], parent: int) -> NoReturn:
    try:
        _die_with_parent(parent)
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
        result = unpack(job)
    except LayerError as error:
        result = {"error": str(error)}
    except OSError as error:
        name = os.fsdecode(error.filename) if error.filename else ""
        result = {"error": f"{name}: {error.strerror}".removeprefix(": ")}
    except Exception as error:  # whatever a hostile archive makes the parser do ends this layer, not the pull
        result = {"error": f"{type(error).__name__}: {error}"}
    _answer(number, result)
    os._exit(0)


def _die_with_parent(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def main() -> None:
    """Run the jobs of each line."""
    _die_with_parent(os.getppid())
    os.umask(0)
    for line in sys.stdin:
        _run(json.loads(line))


def _run(jobs: list[dict[str, Any]]) -> None:
    """Run all jobs and report those whose process died without an answer."""
    running: dict[int, int] = {}
    for number, job in enumerate(jobs):
        if len(running) >= (os.cpu_count() or 1):
            _reap(running)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _child(number, job, parent)
        running[pid] = number
    while running:
        _reap(running)


def _reap(running: dict[int, int]) -> None:
    pid, status = os.wait()
    number = running.pop(pid, None)
    if number is not None and status != 0:
        _answer(number, {"error": f"the unpacking process ended with {os.waitstatus_to_exitcode(status)}"})
