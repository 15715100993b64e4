# SPDX-License-Identifier: AGPL-3.0-or-later
"""Unpacks a CT template (``vztmpl``, a tar archive) into a CT's root directory.

The archive is walked here and not handed to tar: a sandbox template has some dozen files, which takes less
time than to start a process.
"""

from __future__ import annotations

import functools
import os
import shutil
import tarfile
import threading
from pathlib import Path
from typing import IO, Literal

_KEEP_IN_MEMORY_BYTES = 32 * 1024 * 1024

Entry = tuple[tarfile.TarInfo, bytes | None]


class TemplateError(Exception):
    """The archive cannot be read, or reaches out of the CT's root."""


class TemplateStore:
    """Unpacks templates, and keeps the last small ones in memory. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cached = functools.lru_cache(maxsize=2)(_load)

    def unpack(self, archive: Path, root: Path, id_shift: int) -> int:
        """Unpack ``archive`` into the empty directory ``root``; returns the bytes of its files.

        Owners are shifted by ``id_shift``. Entries below /dev are left out, as Proxmox leaves them out: the
        CT's /dev is mounted at its start. Raises TemplateError, leaving what was unpacked so far.
        """
        status = archive.stat()
        try:
            if status.st_size <= _KEEP_IN_MEMORY_BYTES:
                with self._lock:
                    entries = self._cached(archive, status.st_mtime_ns, status.st_size)
                return sum(_write(member, data, root, id_shift) for member, data in entries)
            with tarfile.open(archive, _mode(archive)) as tar:
                return sum(_write(member, tar.extractfile(member), root, id_shift) for member in tar)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise TemplateError(f"{archive}: {error}") from error


def _load(archive: Path, _mtime_ns: int, _size: int) -> list[Entry]:
    with tarfile.open(archive, _mode(archive)) as tar:
        return [(member, _contents(tar, member)) for member in tar]


def _mode(archive: Path) -> Literal["r:", "r:gz", "r:xz", "r:bz2"]:
    """How to open the archive: Proxmox goes by the name, too."""
    match archive.suffix:
        case ".gz":
            return "r:gz"
        case ".xz":
            return "r:xz"
        case ".bz2":
            return "r:bz2"
        case ".tar":
            return "r:"
    raise TemplateError(f"{archive}: compression not supported by the embedded node")


def _contents(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | None:
    stream = tar.extractfile(member) if member.isreg() else None
    return stream.read() if stream is not None else None


def _write(member: tarfile.TarInfo, data: bytes | IO[bytes] | None, root: Path, id_shift: int) -> int:
    """Make one entry below ``root``; returns its size when it is a file."""
    mode = member.mode & 0o7777
    # The filter refuses names and links that lead out of the root; the mode bits it clears are the CT's own.
    member = tarfile.tar_filter(member, str(root))
    name = os.path.normpath(member.name)
    if name.split("/", 1)[0] == "dev" and name != "dev":
        return 0
    target = root / name
    if member.isdir():
        target.mkdir(exist_ok=True)
    elif member.isreg():
        _write_file(target, data)
    elif member.issym():
        target.symlink_to(member.linkname)
    elif member.islnk():
        target.hardlink_to(root / member.linkname)
        return 0
    else:
        return 0  # devices and pipes: an unprivileged CT could not have made them either
    os.lchown(target, member.uid + id_shift, member.gid + id_shift)
    if not member.issym():
        target.chmod(mode)
    return member.size if member.isreg() else 0


def _write_file(target: Path, data: bytes | IO[bytes] | None) -> None:
    with target.open("xb", buffering=0) as file:
        if isinstance(data, bytes):
            file.write(data)
        elif data is not None:
            shutil.copyfileobj(data, file)
