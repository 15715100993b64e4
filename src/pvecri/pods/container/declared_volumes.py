# SPDX-License-Identifier: Apache-2.0
"""Volumes that an image declares (Dockerfile's VOLUME; `Volumes` of the OCI image config).

Each is a directory of the container's own root filesystem, with the image's content and owner. It is created if
the image lacks it, and stays writable if the root is read-only. It counts as the container's writable layer and
goes with the container.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from pvecri.linux.openat2 import open_in_root
from pvecri.model import ContainerConfig, Propagation
from pvecri.oci.plan import BindSource


def make(config: ContainerConfig, declared: Iterable[str], rootfs: Path, owner: int) -> tuple[BindSource, ...]:
    """Create the directories below `rootfs`, owned by `owner`; returns the mounts that keep them writable. Blocks.

    A volume at or below a mount of the request is left out: the client's mount takes precedence. So is one whose
    path in the image is not a directory. OSError if the root filesystem cannot be written.
    """
    mounted = [PurePosixPath("/") / mount.container_path for mount in config.mounts]
    binds = []
    for path in sorted({PurePosixPath(os.path.normpath("/" + each.lstrip("/"))) for each in declared}):
        if path == PurePosixPath("/") or any(path.is_relative_to(place) for place in mounted):
            continue
        directory = _make_directory(rootfs, path, owner)
        if directory is not None and config.security.readonly_rootfs:
            binds.append(
                BindSource(
                    source=directory,
                    container_path=str(path),
                    readonly=False,
                    recursive_readonly=False,
                    propagation=Propagation.PRIVATE.value,
                )
            )
    return tuple(binds)


def _make_directory(rootfs: Path, path: PurePosixPath, owner: int) -> Path | None:
    """The directory's own path, symlinks of the image followed below `rootfs`; None if something else is there."""
    fd = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for depth in range(1, len(path.parts)):
            place = str(PurePosixPath(*path.parts[: depth + 1]))
            try:
                found = open_in_root(rootfs, place, os.O_PATH)
            except FileNotFoundError:
                try:
                    os.mkdir(path.parts[depth], 0o755, dir_fd=fd)
                except FileExistsError:  # a symlink to nothing
                    return None
                os.chown(path.parts[depth], owner, owner, dir_fd=fd)
                found = open_in_root(rootfs, place, os.O_PATH)
            os.close(fd)
            fd = found
            if not stat.S_ISDIR(os.fstat(fd).st_mode):
                return None
        # The path without symlinks: the OCI runtime would resolve the image's against the node's root.
        return Path(f"/proc/self/fd/{fd}").readlink()
    finally:
        os.close(fd)
