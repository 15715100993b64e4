# SPDX-License-Identifier: AGPL-3.0-or-later
"""Makes the files of a CT's root directory from archive entries that nobody vouches for."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path
from typing import IO


class OutsideRoot(tarfile.TarError):
    """An entry's name or link leads out of the root."""


def inside(root: Path, name: str) -> Path:
    """The path of ``name`` below ``root``, symlinks followed; OutsideRoot when that leads out of the root."""
    path = (root / name.lstrip("/")).resolve()
    if not path.is_relative_to(root.resolve()):
        raise OutsideRoot(f"{name!r} would be {path}, outside of {root}")
    return path


def write_entry(member: tarfile.TarInfo, data: bytes | IO[bytes] | None, root: Path, id_shift: int) -> int:
    """Make one entry of an archive below ``root``; returns its size when it is a file.

    Entries below /dev are left out, as Proxmox leaves them out: the CT's /dev is mounted at its start. Raises
    OutsideRoot. (The filters of tarfile would do, but Debian 12's Python has none.)
    """
    inside(root, member.name)
    name = os.path.normpath(member.name.lstrip("/"))
    if name.split("/", 1)[0] == "dev" and name != "dev":
        return 0
    target = root / name
    _make_parents(target, root, id_shift)
    if member.isdir():
        target.mkdir(exist_ok=True)
    elif member.isreg():
        _write_file(target, data)
    elif member.issym():
        target.symlink_to(member.linkname)
    elif member.islnk():
        target.hardlink_to(inside(root, member.linkname))
        return 0
    elif member.isfifo():
        os.mkfifo(target)
    else:
        return 0  # devices: an unprivileged CT could not have made them either
    # The owner first: chown(2) clears set-user-ID bits.
    os.lchown(target, member.uid + id_shift, member.gid + id_shift)
    if not member.issym():
        target.chmod(member.mode & 0o7777)
    return member.size if member.isreg() else 0


def _make_parents(target: Path, root: Path, id_shift: int) -> None:
    """As tar does for an entry whose directories are not in the archive, or come later."""
    missing = [path for path in target.parents if path.is_relative_to(root) and not path.exists()]
    for path in reversed(missing):
        path.mkdir()
        os.chown(path, id_shift, id_shift)


def _write_file(target: Path, data: bytes | IO[bytes] | None) -> None:
    with target.open("xb", buffering=0) as file:
        if isinstance(data, bytes):
            file.write(data)
        elif data is not None:
            shutil.copyfileobj(data, file)
