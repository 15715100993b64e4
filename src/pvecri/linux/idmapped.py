# SPDX-License-Identifier: Apache-2.0
"""Idmapped clones of mounts (mount_setattr(2), MOUNT_ATTR_IDMAP), and a user namespace to try them with."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from pvecri.linux import mounts
from pvecri.linux.mounts import MountEntry

log = logging.getLogger(__name__)

_REFUSED = frozenset({errno.EINVAL, errno.EPERM})
"""What the kernel answers for a filesystem that cannot be idmapped, and for a mount that is idmapped already."""


def bind_tree(source: Path, target: Path, userns_fd: int) -> list[MountEntry]:
    """Show `source`, with all that is mounted below it, at `target` with the IDs of a user namespace.

    Answers with the mounts that cannot be idmapped. They are shown as they are: their files belong to nobody in
    that user namespace. OSError for other causes; the caller unmounts what is there by then.
    """
    try:
        mounts.bind_clone(source, target, userns_fd, recursive=True)
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        # The kernel maps all of a tree or none, and of a detached tree only the top can be named: one by one then.
        return _bind_one_by_one(source, target, userns_fd)
    return []


def _bind_one_by_one(source: Path, target: Path, userns_fd: int) -> list[MountEntry]:
    refused = []
    for entry in mounts_from(source, mounts.mounts()):
        is_below = entry.mountpoint != source and entry.mountpoint.is_relative_to(source)
        shown = entry.mountpoint if is_below else source
        place = target / shown.relative_to(source)
        mapped = can_be_mapped(shown, userns_fd)
        try:
            mounts.bind_clone(shown, place, userns_fd if mapped else None)
        except FileNotFoundError:  # it was unmounted meanwhile, or another mount hides it
            continue
        except PermissionError:
            # In the clone a directory that belongs to unmapped IDs is closed to everyone, the node's root
            # included.
            log.info("%s: not shown below %s: its directory belongs to IDs that the pod lacks", shown, source)
            continue
        if not mapped:
            refused.append(entry)
    return refused


def can_be_mapped(source: Path, userns_fd: int) -> bool:
    """Whether the mount that `source` is on can be idmapped. Mounts nothing."""
    try:
        os.close(mounts.open_clone(source, userns_fd))
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        return False
    return True


def mounts_from(source: Path, table: Sequence[MountEntry]) -> list[MountEntry]:
    """The mount that `source` is on, then those below it, of several at one place the one that is seen."""
    seen = {entry.mountpoint: entry for entry in table}
    holding = max(
        (entry for entry in seen.values() if source.is_relative_to(entry.mountpoint)),
        key=lambda entry: len(entry.mountpoint.parts),
    )
    below = (
        each for each in seen.values() if each.mountpoint != source and each.mountpoint.is_relative_to(source)
    )
    return [holding, *sorted(below, key=lambda entry: len(entry.mountpoint.parts))]


def open_user_namespace(first_id: int, length: int) -> int:
    """A descriptor of a new user namespace, in which 0 is `first_id` of the node; the caller closes it.

    No process is left in it. OSError or subprocess.SubprocessError when it cannot be made.
    """
    command = ["unshare", "--user", "sh", "-c", "echo; read _"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        try:
            holder.stdout.readline()  # it is in the namespace now
            for name in ("uid_map", "gid_map"):
                Path(f"/proc/{holder.pid}/{name}").write_text(f"0 {first_id} {length}\n")
            return os.open(f"/proc/{holder.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            holder.stdin.close()
