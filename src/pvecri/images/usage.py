# SPDX-License-Identifier: Apache-2.0
"""How much a directory tree holds, also while a container changes it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BLOCK = 512


class Usage(NamedTuple):
    """Bytes on the disk, and inodes."""

    bytes: int
    inodes: int


def tree_usage(top: Path) -> Usage:
    """What is allocated to `top` and all below it; hard links count once. 0 when it does not exist. Blocks.

    Directories are opened one at a time below their parent and never through a symlink, so that nobody who moves
    things about in the tree can lead the count elsewhere.
    """
    try:
        fd = os.open(top, _DIRECTORY)
    except FileNotFoundError:
        return Usage(0, 0)
    links: set[int] = set()
    try:
        own = os.fstat(fd)
        below = _below(fd, links)
    finally:
        os.close(fd)
    return Usage(own.st_blocks * _BLOCK + below.bytes, 1 + below.inodes)


def _below(fd: int, links: set[int], depth: int = 0) -> Usage:
    size = inodes = 0
    with os.scandir(fd) as entries:
        for entry in entries:
            try:
                found = entry.stat(follow_symlinks=False)
                if found.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
                    if found.st_ino in links:
                        continue
                    links.add(found.st_ino)
                size += found.st_blocks * _BLOCK
                inodes += 1
                if entry.is_dir(follow_symlinks=False) and depth < _DEEPEST:
                    child = os.open(entry.name, _DIRECTORY, dir_fd=fd)
                    try:
                        below = _below(child, links, depth + 1)
                    finally:
                        os.close(child)
                    size, inodes = size + below.bytes, inodes + below.inodes
            except OSError:  # removed or replaced in the meantime
                continue
    return Usage(size, inodes)


_DEEPEST = 200
"""Deeper directories are not counted: each level holds a descriptor and a stack frame."""
