# SPDX-License-Identifier: Apache-2.0
"""Directories that an archive leaves out, and the attributes that they should have.

An archive may hold `tmp/file` without `tmp`. Unpacked on top of the layers below, as its builder sees it, `tmp`
would stay what it is there (1777). Unpacked by itself the layer gets a `tmp` that is made up (0755), and overlayfs
shows the uppermost directory's attributes. The remedy is one more layer, of nothing but such directories, on top.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Attributes(NamedTuple):
    """What a directory has; ids as the image has them."""

    mode: int
    uid: int
    gid: int


MADE_UP: Final = Attributes(0o755, 0, 0)


class Unpacked(NamedTuple):
    """A layer in overlay form at `top`, and its directories that were made up."""

    top: Path
    implicit: frozenset[str]


class _Sight(NamedTuple):
    """What a layer shows at a path: a directory's attributes or none; `last` when it hides all layers below."""

    attributes: Attributes | None
    last: bool


def inherited(layers: Sequence[Unpacked]) -> dict[str, Attributes]:
    """The directories, by path and with all above them, that need other attributes than were made up. Blocks.

    `layers` lowest first. Empty for most images. Layers are untrusted: no symlink in them is followed.
    """
    found: dict[str, Attributes] = {}
    for path in set().union(*(layer.implicit for layer in layers)):
        attributes, hidden = _effective(layers, path)
        if hidden and attributes != MADE_UP:
            found[path] = attributes
    above = {str(parent) for path in found for parent in PurePosixPath(path).parents}
    return {path: _effective(layers, path).attributes for path in sorted(above | found.keys())}


def make(directory: Path, directories: dict[str, Attributes]) -> None:
    """Create the directories below an empty one."""
    for path, attributes in sorted(directories.items()):
        place = directory / path
        place.mkdir(exist_ok=True)
        os.chown(place, attributes.uid, attributes.gid)
        place.chmod(attributes.mode)


class _Effective(NamedTuple):
    """What a directory should have, and whether a made-up one hides that."""

    attributes: Attributes
    hidden: bool


def _effective(layers: Sequence[Unpacked], path: str) -> _Effective:
    """What the uppermost layer that really holds the directory says."""
    hidden = False
    for layer in reversed(layers):
        sight = _look(layer.top, path)
        if sight.attributes is not None and path not in layer.implicit:
            return _Effective(sight.attributes, hidden)
        if sight.last:
            break
        hidden = hidden or sight.attributes is not None
    return _Effective(MADE_UP, hidden=False)


def _look(top: Path, path: str) -> _Sight:
    """Open one component after the other; what is no directory hides what lies below, as an opaque one does."""
    fd = os.open(top, _DIRECTORY)
    last = False
    try:
        for name in _components(path):
            child = os.open(name, _DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = child
            last = last or _is_opaque(fd)
        found = os.fstat(fd)
    except FileNotFoundError:
        return _Sight(None, last)
    except OSError:
        return _Sight(None, last=True)
    finally:
        os.close(fd)
    return _Sight(Attributes(stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid), last)


def _components(path: str) -> Iterator[str]:
    return (part for part in PurePosixPath(path).parts if part != ".")


def _is_opaque(fd: int) -> bool:
    try:
        return os.getxattr(fd, "trusted.overlay.opaque") == b"y"
    except OSError:
        return False


def described(directories: dict[str, Attributes]) -> Iterable[str]:
    """One line a directory, the same for the same directories."""
    return (f"{path}\0{mode:o}\0{uid}\0{gid}" for path, (mode, uid, gid) in sorted(directories.items()))
