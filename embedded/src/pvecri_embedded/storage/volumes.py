# SPDX-License-Identifier: AGPL-3.0-or-later
"""Volumes of CTs and files of storages, as they lie on disk.

A ``dir`` or ``btrfs`` storage is laid out as Proxmox lays it out. Block storages (``lvmthin``) are stood in
for by image files: the API's answers and the CT's view (an ext4 filesystem of the given size) are the same.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GIB = 1024**3
_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": GIB, "T": 1024**4}
# Content type -> the directory of a file storage.
CONTENT_DIRS = {
    "iso": "template/iso",
    "vztmpl": "template/cache",
    "backup": "dump",
    "snippets": "snippets",
    "import": "import",
}
_TEMPLATE_FORMATS = {"gz": "tgz", "xz": "txz", "zst": "tzst", "bz2": "tbz2", "tar": "tar"}
_ALLOCATE_PLACE = "/usr/share/perl5/PVE/Storage/Plugin.pm line 1055"
_REMOVE_PLACE = "/usr/share/perl5/PVE/Storage/Plugin.pm line 1136"
"""Where Proxmox VE 9.2 dies, or warns, with the text of a library's: Perl adds the place then."""
_OWNED = re.compile(r"^(?:(\d+)/)?(?:vm|subvol|base|basevol)-(\d+)-disk-\d+(?:\.(raw|subvol))?$")


class VolumeError(Exception):
    """A volume could not be made; the text is the task's error."""


@dataclass(frozen=True)
class Volume:
    """A volume on disk: ``name`` without the storage, sizes in bytes."""

    name: str
    content: str
    format: str
    size: int
    used: int
    ctime: int
    vmid: int | None = None

    def as_content(self) -> dict[str, Any]:
        """The volume as fakepve's storage model holds it."""
        data: dict[str, Any] = {
            "content": self.content, "format": self.format, "size": self.size, "ctime": self.ctime
        }  # fmt: skip
        if self.vmid is not None:
            data |= {"vmid": self.vmid, "used": self.used}
        return data


class Storage:
    """One storage's directory."""

    def __init__(self, name: str, kind: str, path: Path) -> None:
        self.name = name
        self.kind = kind
        self.path = path

    @property
    def _blocks(self) -> bool:
        return self.kind not in {"dir", "btrfs"}

    def make_directories(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        for name in () if self._blocks else ("images", *CONTENT_DIRS.values()):
            (self.path / name).mkdir(parents=True, exist_ok=True)

    def volume_path(self, name: str) -> Path:
        """Where the volume ``name`` lies. Raises VolumeError for a name that leads elsewhere."""
        content, slash, rest = name.partition("/")
        if self._blocks:
            path = self.path / name
        elif content in CONTENT_DIRS and slash:
            path = self.path / CONTENT_DIRS[content] / rest
        else:
            path = self.path / "images" / name
        # Joining an absolute path would leave the storage, as ".." would.
        if ".." in Path(name).parts or name.startswith("/") or rest.startswith("/"):
            raise VolumeError(f"unable to parse directory volume name '{name}'")
        return path

    def new_name(self, vmid: int, number: int, *, directory: bool) -> str:
        """The name of disk ``number`` of a CT: a plain directory, or an image with a filesystem."""
        if self._blocks:
            return f"vm-{vmid}-disk-{number}"
        return f"{vmid}/subvol-{vmid}-disk-{number}.subvol" if directory else f"{vmid}/vm-{vmid}-disk-{number}.raw"

    def allocate(self, name: str, size: int, root_id: int) -> list[str]:
        """Make the volume (``size`` 0: a directory), owned by ``root_id``; returns what the task logs."""
        path = self.volume_path(name)
        try:
            path.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise VolumeError(f"mkdir {path.parent}: {error.strerror} at {_ALLOCATE_PLACE}.") from error
        if not size:
            try:
                path.mkdir()
            except OSError as error:
                raise VolumeError(f"unable to create subvol '{path}' - {error.strerror}") from error
            os.chown(path, root_id, root_id)
            return []
        try:
            with path.open("xb") as file:
                file.truncate(size)
        except OSError as error:
            path.unlink(missing_ok=True)
            reason = f"qemu-img: {path}: Could not create '{path}': {error.strerror}"
            raise VolumeError(f"unable to create image: {reason}") from error
        log = [] if self._blocks else [f"Formatting '{path}', fmt=raw size={size} preallocation=off"]
        return [*log, *_make_filesystem(path, root_id)]

    def free(self, name: str) -> list[str]:
        """Remove the volume; returns what the task logs. Idempotent.

        As with Proxmox what cannot be removed of a directory stays, and is no error (PVE::Storage::Plugin). Raises
        VolumeError for an image.
        """
        path = self.volume_path(name)
        log: list[str] = []
        if path.is_dir() or name.endswith(".subvol"):
            log += _remove_tree(path)
        elif not path.is_file():
            return [f"disk image '{path}' does not exist"]
        else:
            try:
                path.unlink()
            except OSError as error:
                raise VolumeError(f"unlink '{path}' failed - {error.strerror}") from error
        if path.parent.parent == self.path / "images":
            with contextlib.suppress(OSError):
                path.parent.rmdir()  # stays while another volume of the CT is there
        return log

    def copy_from(self, source: Path, name: str) -> None:
        """Make the volume as a copy of another, holes and owners kept."""
        target = self.volume_path(name)
        target.parent.mkdir(exist_ok=True)
        _run(["cp", "--archive", "--sparse=always", "--no-target-directory", str(source), str(target)])

    def resize(self, name: str, size: int) -> None:
        """Grow an image and the filesystem in it, which must not be mounted."""
        path = self.volume_path(name)
        os.truncate(path, size)
        # resize2fs wants a check first. e2fsck's status is 1 if it has corrected something.
        subprocess.run(["e2fsck", "-f", "-y", str(path)], capture_output=True, check=False)
        _run(["resize2fs", str(path)])

    def volumes(self) -> Iterator[Volume]:
        """What lies on the storage."""
        if self._blocks:
            yield from (_disk(path, path.name) for path in self.path.iterdir() if _OWNED.match(path.name))
            return
        for content, directory in CONTENT_DIRS.items():
            for path in (self.path / directory).iterdir():
                yield _file(path, content)
        for path in (self.path / "images").glob("*/*"):
            if _OWNED.match(f"{path.parent.name}/{path.name}"):
                yield _disk(path, f"{path.parent.name}/{path.name}")

    def space(self) -> tuple[int, int, int]:
        """Total, used and available bytes of the filesystem the storage is on."""
        status = os.statvfs(self.path)
        return (
            status.f_blocks * status.f_frsize,
            (status.f_blocks - status.f_bfree) * status.f_frsize,
            status.f_bavail * status.f_frsize,
        )


def _disk(path: Path, name: str) -> Volume:
    match = _OWNED.match(name)
    assert match is not None
    status = path.stat()
    return Volume(
        name=name,
        content="rootdir",
        format=match.group(3) or "raw",
        size=0 if path.is_dir() else status.st_size,
        used=status.st_blocks * 512,
        ctime=int(status.st_ctime),
        vmid=int(match.group(2)),
    )


def _file(path: Path, content: str) -> Volume:
    status = path.stat()
    ending = path.suffix.removeprefix(".")
    return Volume(
        name=f"{content}/{path.name}",
        content=content,
        format=_TEMPLATE_FORMATS.get(ending, ending) if content == "vztmpl" else ending,
        size=status.st_size,
        used=status.st_blocks * 512,
        ctime=int(status.st_ctime),
    )


def _remove_tree(path: Path) -> list[str]:
    """Remove a directory as Perl's File::Path does: on past errors, each of which is a line of the result."""
    log: list[str] = []

    def failed(function: Callable[..., Any], item: str, info: tuple[Any, BaseException, Any]) -> None:
        if isinstance(info[1], FileNotFoundError):
            return
        what = "remove directory for" if function in {os.rmdir, os.scandir, os.open} else "unlink file for"
        log.append(f"cannot {what} {item}: {os.strerror(getattr(info[1], 'errno', 0) or 0)} at {_REMOVE_PLACE}.")

    shutil.rmtree(path, onerror=failed)
    return log


def _make_filesystem(path: Path, root_id: int) -> list[str]:
    # mmp as in PVE::LXC: no second node can mount it. nodiscard: the file is sparse already.
    options = f"root_owner={root_id}:{root_id},nodiscard"
    output = _run(["mkfs.ext4", "-O", "mmp", "-E", options, "-F", str(path)])
    wanted = ("Creating filesystem", "Filesystem UUID", "Superblock backups", "\t")
    return [line for line in output.splitlines() if line.startswith(wanted)]


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise VolumeError(f"command '{' '.join(command)}' failed: exit code {done.returncode}")
    return done.stdout


def parse_size(text: str) -> int:
    """Bytes of a size as configs and requests spell it: ``8G``, ``0.5G``, ``512M``, ``1024``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)", text)
    if match is None:
        raise VolumeError("invalid size string")
    return int(float(match.group(1)) * _UNITS[match.group(2)])


def format_size(size: int) -> str:
    """Proxmox's spelling: the largest unit that divides the size, and ``0T`` for none."""
    for unit in "TGMK":
        if size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit}"
    return str(size)
