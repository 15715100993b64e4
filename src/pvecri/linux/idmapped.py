# SPDX-License-Identifier: Apache-2.0
"""Idmapped mounts (mount_setattr(2), MOUNT_ATTR_IDMAP), and a user namespace to test for their support with."""

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
"""errno for a filesystem without idmapped mounts, and for a mount that is idmapped already."""


def bind_tree(source: Path, target: Path, userns_fd: int) -> list[MountEntry]:
    """Bind mount `source`, with the mounts below it, at `target`, idmapped to a user namespace.

    Returns the mounts that cannot be idmapped, which are bound unmapped: their files belong to nobody in that user
    namespace. OSError for other causes; the caller then unmounts what is there.
    """
    try:
        mounts.bind_clone(source, target, userns_fd, recursive=True)
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        # mount_setattr with AT_RECURSIVE is all or nothing, and only the top of a detached tree has a descriptor.
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
        except FileNotFoundError:  # unmounted meanwhile, or hidden below another mount
            continue
        except PermissionError:
            # In an idmapped mount nobody may enter a directory of unmapped IDs: CAP_DAC_OVERRIDE covers mapped
            # inodes only (capable_wrt_inode_uidgid).
            log.info("%s: not shown below %s: its directory belongs to IDs that the pod lacks", shown, source)
            continue
        if not mapped:
            refused.append(entry)
    return refused


def can_be_mapped(source: Path, userns_fd: int) -> bool:
    """Whether the mount that `source` is on can be idmapped; tested on a detached clone."""
    try:
        os.close(mounts.open_clone(source, userns_fd))
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        return False
    return True


def mounts_from(source: Path, table: Sequence[MountEntry]) -> list[MountEntry]:
    """The mount that `source` is on, then those below it, parents first; of stacked mounts the topmost."""
    # A mount covers those of earlier lines at the same mount point.
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
    """A descriptor of a new user namespace that maps 0 to the host ID `first_id`; the caller closes it.

    It has no process. OSError or subprocess.SubprocessError if it cannot be created.
    """
    # A program of its own: the kernel refuses unshare(CLONE_NEWUSER) to a process with threads (EINVAL). The
    # namespace lives until the descriptor is open, for `read` blocks until stdin is closed.
    command = ["unshare", "--user", "sh", "-c", "echo; read _"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        try:
            holder.stdout.readline()  # unshare(1) has created the namespace
            # Both maps can be written once, by a process of the parent namespace with CAP_SETUID and CAP_SETGID.
            for name in ("uid_map", "gid_map"):
                Path(f"/proc/{holder.pid}/{name}").write_text(f"0 {first_id} {length}\n")
            return os.open(f"/proc/{holder.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            holder.stdin.close()
