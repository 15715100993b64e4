# SPDX-License-Identifier: AGPL-3.0-or-later
"""A CT's backup as vzdump writes it: a tar archive of its config and its root directory."""

from __future__ import annotations

import io
import re
import tarfile
import time
from pathlib import Path

CONFIG = "./etc/vzdump/pct.conf"
FIREWALL = "./etc/vzdump/pct.fw"
ENDINGS = {"0": ".tar", "gzip": ".tar.gz"}
"""The values of vzdump's ``compress`` that this node can do; the others are lzo and zstd."""
_EXCLUDED = re.compile(r"\./(?:tmp/.+|var/tmp/.+|var/run/.+\.pid|lost\+found(?:/.*)?)")
"""vzdump's ``stdexcludes``."""


class BackupError(Exception):
    """The archive is no backup of a CT; the text is the task's error."""


def new_name(vmid: int, ending: str) -> str:
    """The name of a backup that is made now."""
    return f"vzdump-lxc-{vmid}-{time.strftime('%Y_%m_%d-%H_%M_%S')}{ending}"


def write(archive: Path, config: str, root: Path, id_shift: int) -> int:
    """Write the backup of ``root``, whose owners are shifted by ``id_shift``, to a new file; returns its size."""

    def unshifted(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if _EXCLUDED.fullmatch(member.name):
            return None
        member.uid, member.gid, member.uname, member.gname = member.uid - id_shift, member.gid - id_shift, "", ""
        return member

    part = archive.parent.parent / f"{archive.name}.dat"
    try:
        with tarfile.open(part, "x:gz" if archive.suffix == ".gz" else "x:") as tar:
            for name, text in ((CONFIG, config), (FIREWALL, "")):
                member = tarfile.TarInfo(name)
                member.size = len(text.encode())
                tar.addfile(member, io.BytesIO(text.encode()))
            tar.add(root, arcname=".", filter=unshifted)
        part.rename(archive)
    finally:
        part.unlink(missing_ok=True)
    return archive.stat().st_size


def read_config(archive: Path) -> str:
    """The text of the config in a backup. BackupError."""
    try:
        with tarfile.open(archive) as tar:
            for member in tar:  # it is the first: no more than that is read
                if member.name in (CONFIG, CONFIG.removeprefix("./")):
                    stream = tar.extractfile(member)
                    return stream.read().decode() if stream is not None else ""
    except (tarfile.TarError, EOFError, OSError) as error:
        raise BackupError(f"unable to read '{archive}': {error}") from error
    raise BackupError("ERROR: archive contains no configuration file")


def remove_config(root: Path) -> None:
    """Remove the config and the firewall's from a root directory to which a backup was extracted."""
    for name in (CONFIG, FIREWALL):
        (root / name).unlink(missing_ok=True)
