# SPDX-License-Identifier: Apache-2.0
"""The disk usage of a directory tree, also while a container changes it."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from typing import NamedTuple

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BLOCK = 512  # the unit of st_blocks on every filesystem: stat(2)
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
    """The usage of `top` and all below it, however deep; hard links count once. 0 if it does not exist. Blocks.

    Directories are opened relative to each other and never through a symlink: a container that swaps a directory
    for a symlink meanwhile cannot redirect the count to the node's files. Four descriptors are open at most.
    What a container moves or removes meanwhile may be missing.
    """
    try:
        start = os.open(top, _DIRECTORY)
    except FileNotFoundError:
        return Usage(0, 0)
    try:
        size, inodes = _count(start)
        return Usage(os.fstat(start).st_blocks * _BLOCK + size, 1 + inodes)
    finally:
        os.close(start)


class _Level(NamedTuple):
    """A directory on the way down, and the names of its directories that are still to be counted."""

    name: str
    identity: tuple[int, int]
    directories: list[str]


def _count(start: int) -> tuple[int, int]:
    """The bytes and inodes below `start`, depth first: a stack of names instead of one of descriptors."""
    links: set[int] = set()
    size, inodes, directories = _entries(start, links)
    path = [_Level(".", _identity(start), directories)]
    fd = os.open(".", _DIRECTORY, dir_fd=start)
    try:
        while path:
            if not path[-1].directories:
                path.pop()
                fd = _up(fd, start, path)
                continue
            name = path[-1].directories.pop()
            try:
                child = os.open(name, _DIRECTORY, dir_fd=fd)
            except OSError:  # removed or replaced in the meantime
                continue
            os.close(fd)
            fd = child
            more_bytes, more_inodes, directories = _entries(fd, links)
            size, inodes = size + more_bytes, inodes + more_inodes
            path.append(_Level(name, _identity(fd), directories))
    finally:
        os.close(fd)
    return size, inodes


def _up(fd: int, start: int, path: list[_Level]) -> int:
    """Close `fd` and open its parent, the last of `path`.

    If `fd` was moved or removed meanwhile, `..` leads elsewhere: then the names lead there from `start`, and
    `path` ends where they lead to other directories.
    """
    try:
        parent = os.open("..", _DIRECTORY, dir_fd=fd)
    except OSError:
        parent = os.open(".", _DIRECTORY, dir_fd=start)
    os.close(fd)
    if not path or _identity(parent) == path[-1].identity:
        return parent
    os.close(parent)
    place = os.open(".", _DIRECTORY, dir_fd=start)
    for depth, level in enumerate(path[1:], 1):
        try:
            child = os.open(level.name, _DIRECTORY, dir_fd=place)
        except OSError:
            del path[depth:]
            break
        if _identity(child) != level.identity:
            os.close(child)
            del path[depth:]
            break
        os.close(place)
        place = child
    return place


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def _entries(fd: int, links: set[int]) -> tuple[int, int, list[str]]:
    """The bytes and number of a directory's entries, and the names of those that are directories."""
    size = inodes = 0
    directories = []
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                try:
                    found = entry.stat(follow_symlinks=False)
                except OSError:  # removed in the meantime
                    continue
                if stat.S_ISDIR(found.st_mode):
                    directories.append(entry.name)
                elif found.st_nlink > 1:
                    if found.st_ino in links:
                        continue
                    links.add(found.st_ino)
                size += found.st_blocks * _BLOCK
                inodes += 1
    except OSError:  # of a directory that was removed
        pass
    return size, inodes, directories
