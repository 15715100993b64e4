# SPDX-License-Identifier: AGPL-3.0-or-later
"""A small CT template of the machine's own static binaries: catatonit as init, busybox as shell."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

_BINARIES = {"sbin/catatonit": "/usr/bin/catatonit", "bin/busybox": "/bin/busybox"}
_LINKS = dict.fromkeys(("sh", "sleep", "ls", "cat"), "busybox")
_DIRECTORIES = ("bin", "dev", "etc", "proc", "run", "sbin", "sys", "tmp")
PAUSE = b"#!/bin/busybox sh\nexec /sbin/catatonit -P\n"
"""An init that reaps, and ends on SIGTERM alone."""
POWER_OFF = b"#!/bin/busybox sh\ntrap 'exit 0' PWR\nwhile true; do sleep 1000 & wait $!; done\n"
"""An init that ends on SIGPWR, as a distribution's does."""


def write_template(path: Path, init: bytes = PAUSE, outside: str = "") -> Path:
    """Write the template as a tar archive, compressed when the name ends in ``.gz``.

    ``outside`` adds a file by a name that is to lead out of the CT's root.
    """
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name in _DIRECTORIES:
            tar.addfile(_entry(f"./{name}", tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755))
        for name, source in _BINARIES.items():
            data = Path(source).read_bytes()
            tar.addfile(_entry(f"./{name}", tarfile.REGTYPE, 0o755, size=len(data)), io.BytesIO(data))
        tar.addfile(_entry("./sbin/init", tarfile.REGTYPE, 0o755, size=len(init)), io.BytesIO(init))
        for name, target in _LINKS.items():
            link = _entry(f"./bin/{name}", tarfile.SYMTYPE, 0o777)
            link.linkname = target
            tar.addfile(link)
        if outside:
            tar.addfile(_entry(outside, tarfile.REGTYPE, 0o644))
    return path


def _entry(name: str, kind: bytes, mode: int, size: int = 0) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.size = kind, mode, size
    return entry
