# SPDX-License-Identifier: Apache-2.0
"""Showing a whole directory tree as a container's root filesystem: a bind mount with the container's ids.

<home>/root      the mount point
      /w/tree    the container's own writable copy of its image
"""

from __future__ import annotations

import os
from pathlib import Path

from pvecri.errors import Unimplemented
from pvecri.images.drivers.overlay_roots import cannot_be_mapped
from pvecri.linux import mounts
from pvecri.model import ContainerId


def show(tree: Path, target: Path, userns: Path | None) -> None:
    """Mount `tree` at `target`, without device nodes; with `userns`, with the ids of that user namespace.

    Files are stored with the image's ids then, those that the container writes, too.
    """
    fd = mounts.open_tree(tree, mounts.OPEN_TREE_CLONE)
    try:
        _dress(fd, tree, userns)
        mounts.move_mount(fd, target)
    finally:
        os.close(fd)


def no_writable_layer(container: ContainerId, driver: str) -> Unimplemented:
    """What a driver answers that keeps no record of a container's changes."""
    return Unimplemented(
        f"container {container}: images.driver {driver!r} keeps whole trees, in which what the container wrote "
        "cannot be told apart; overlay and raw can tell"
    )


def _dress(fd: int, tree: Path, userns: Path | None) -> None:
    if userns is None:
        mounts.mount_setattr(fd, attributes=mounts.MOUNT_ATTR_NODEV, path=tree)
        return
    userns_fd = os.open(userns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        mounts.mount_setattr(fd, attributes=mounts.MOUNT_ATTR_NODEV, idmap_userns_fd=userns_fd, path=tree)
    except OSError as error:
        raise cannot_be_mapped(tree, error) from error
    finally:
        os.close(userns_fd)
