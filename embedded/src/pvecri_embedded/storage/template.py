# SPDX-License-Identifier: AGPL-3.0-or-later
"""Unpacks a CT template (``vztmpl``, a tar archive) into a CT's root directory.

The archive is walked here and not handed to tar: a sandbox template has some dozen files, which takes less
time than to start a process.
"""

from __future__ import annotations

import functools
import tarfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pvecri_embedded.storage import oci
from pvecri_embedded.storage.rootfs import write_entry

_KEEP_IN_MEMORY_BYTES = 32 * 1024 * 1024

Entry = tuple[tarfile.TarInfo, bytes | None]


class TemplateError(Exception):
    """The archive cannot be read, or reaches out of the CT's root."""


@dataclass(frozen=True)
class Unpacked:
    """What came of a template: the bytes of its files, and the options it sets in the CT's config."""

    size: int
    options: Mapping[str, Any] | None = None
    """None unless the template is an OCI image."""


class TemplateStore:
    """Unpacks templates, and keeps the last small ones in memory. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cached = functools.lru_cache(maxsize=2)(_load)

    def unpack(self, archive: Path, root: Path, id_shift: int) -> Unpacked:
        """Unpack ``archive`` into the empty directory ``root``, owners shifted by ``id_shift``.

        Raises TemplateError, leaving what was unpacked so far.
        """
        status = archive.stat()
        try:
            if status.st_size <= _KEEP_IN_MEMORY_BYTES:
                with self._lock:
                    entries = self._cached(archive, status.st_mtime_ns, status.st_size)
                if entries is not None:
                    return Unpacked(sum(write_entry(member, data, root, id_shift) for member, data in entries))
            with tarfile.open(archive, _mode(archive)) as tar:
                if oci.is_archive(tar):
                    image = oci.Image(tar)
                    return Unpacked(image.unpack(root, id_shift), image.options(root))
                return Unpacked(sum(write_entry(m, tar.extractfile(m), root, id_shift) for m in tar))
        except (tarfile.TarError, EOFError, OSError, KeyError, ValueError) as error:
            raise TemplateError(f"{archive}: {error}") from error


def _load(archive: Path, _mtime_ns: int, _size: int) -> list[Entry] | None:
    """The entries of a plain template; None for an OCI archive."""
    with tarfile.open(archive, _mode(archive)) as tar:
        if oci.is_archive(tar):
            return None
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
