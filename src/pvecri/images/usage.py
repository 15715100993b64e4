# SPDX-License-Identifier: Apache-2.0
"""The disk usage of a directory tree, also while a container changes it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BLOCK = 512  # the unit of st_blocks on every filesystem: stat(2)
_MAX_DEPTH = 200
"""Deeper directories are not counted: each level needs a descriptor and a stack frame."""
_SLOW = 0.1
"""Seconds after which a count is cached."""
_CACHE_FACTOR = 20


class Usage(NamedTuple):
    """Allocated bytes, and inodes; `counted` is the time in nanoseconds since the epoch, 0 for now."""

    bytes: int
    inodes: int
    counted: int = 0


class Meter:
    """Measures trees, and caches the usage of large ones. Thread-safe.

    A count that took longer than a tenth of a second is cached for twenty times as long as it took: so counting
    takes at most a twentieth of a CPU, however large the tree is and however often the kubelet polls.
    """

    def __init__(self) -> None:
        self._known: dict[Path, tuple[float, Usage]] = {}

    def measure(self, top: Path) -> Usage:
        """`tree_usage` of `top`, maybe cached. Blocks."""
        begin = time.monotonic()
        until, known = self._known.get(top, (0.0, Usage(0, 0)))
        if begin < until:
            return known
        now = time.time_ns()
        usage = tree_usage(top)
        took = time.monotonic() - begin
        if took > _SLOW:
            usage = usage._replace(counted=now)
            self._known[top] = (begin + took * (1 + _CACHE_FACTOR), usage)
        else:
            self._known.pop(top, None)
        return usage

    def forget(self, top: Path) -> None:
        self._known.pop(top, None)


def tree_usage(top: Path) -> Usage:
    """The usage of `top` and all below it; hard links count once. 0 if it does not exist. Blocks.

    Directories are opened relative to their parent and never through a symlink: a container that swaps a directory
    for a symlink meanwhile cannot redirect the count to the node's files.
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
                if entry.is_dir(follow_symlinks=False) and depth < _MAX_DEPTH:
                    child = os.open(entry.name, _DIRECTORY, dir_fd=fd)
                    try:
                        below = _below(child, links, depth + 1)
                    finally:
                        os.close(child)
                    size, inodes = size + below.bytes, inodes + below.inodes
            except OSError:  # removed or replaced in the meantime
                continue
    return Usage(size, inodes)
