# SPDX-License-Identifier: Apache-2.0
"""How much a directory tree holds, also while a container changes it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BLOCK = 512
_DEEPEST = 200
"""Deeper directories are not counted: each level holds a descriptor and a stack frame."""
_LONG = 0.1
_REST = 20


class Usage(NamedTuple):
    """Bytes on the disk, and inodes; `counted` is when, in nanoseconds since the epoch, 0 for now."""

    bytes: int
    inodes: int
    counted: int = 0


class Meter:
    """Counts trees, but large ones not all the time. May be used by several threads.

    A count that took longer than a tenth of a second is given out again for twenty times as long as it took, so
    that counting takes a twentieth of a CPU at most, however large the tree and however often one asks.
    """

    def __init__(self) -> None:
        self._known: dict[Path, tuple[float, Usage]] = {}

    def measure(self, top: Path) -> Usage:
        """What `tree_usage` says of `top`, now or a little earlier. Blocks."""
        begin = time.monotonic()
        until, known = self._known.get(top, (0.0, Usage(0, 0)))
        if begin < until:
            return known
        now = time.time_ns()
        usage = tree_usage(top)
        took = time.monotonic() - begin
        if took > _LONG:
            usage = usage._replace(counted=now)
            self._known[top] = (begin + took * (1 + _REST), usage)
        else:
            self._known.pop(top, None)
        return usage

    def forget(self, top: Path) -> None:
        """The tree is gone."""
        self._known.pop(top, None)


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
