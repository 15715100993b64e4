# SPDX-License-Identifier: Apache-2.0
"""Directories that a layer's archive leaves out, and the attributes that they should have (decision 0015).

An archive may have `tmp/file` without `tmp`. Extracted on top of the layers below, as its builder expects, `tmp`
keeps the attributes it has there (1777). Extracted alone the layer gets a `tmp` with default attributes (0755),
and overlayfs shows those of the uppermost directory. So one more layer on top has these directories, with the
right attributes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Attributes(NamedTuple):
    """A directory's mode and owner; IDs as the archive has them."""

    mode: int
    uid: int
    gid: int


DEFAULT: Final = Attributes(0o755, 0, 0)


class ExtractedLayer(NamedTuple):
    """A layer in overlayfs' form at `top`, and the directories that its archive left out."""

    top: Path
    implicit: frozenset[str]


class _Found(NamedTuple):
    """A layer's entry at a path: a directory's attributes or None.

    `last` if layers below are hidden; `hidden_above` if they are so by something above the path.
    """

    attributes: Attributes | None
    last: bool
    hidden_above: bool = False


def inherited(layers: Sequence[ExtractedLayer]) -> dict[str, Attributes]:
    """The directories, by path and with their ancestors, whose attributes must be restored. Blocks.

    `layers` lowest first. Empty for most images. Layers are untrusted: no symlink in them is followed.
    """
    found: dict[str, Attributes] = {}
    for path in set().union(*(layer.implicit for layer in layers)):
        attributes, hidden = _effective(layers, path)
        if hidden and attributes != DEFAULT:
            found[path] = attributes
    # The ancestors need an entry in the layer as well, and overlayfs then shows the attributes of these.
    above = {str(parent) for path in found for parent in PurePosixPath(path).parents}
    return {path: _effective(layers, path).attributes for path in sorted(above | found.keys())}


def make(directory: Path, directories: dict[str, Attributes]) -> None:
    """Create the directories below `directory`, which is empty."""
    for path, attributes in sorted(directories.items()):
        place = directory / path
        place.mkdir(exist_ok=True)
        os.chown(place, attributes.uid, attributes.gid)
        place.chmod(attributes.mode)


class _Effective(NamedTuple):
    """The attributes that a directory should have, and whether one with default attributes hides them."""

    attributes: Attributes
    hidden: bool


def _effective(layers: Sequence[ExtractedLayer], path: str) -> _Effective:
    hidden = False
    for layer in reversed(layers):
        found = _lookup(layer.top, path)
        left_out = found.attributes is not None and path in layer.implicit
        if found.attributes is not None and not left_out:
            return _Effective(found.attributes, hidden)
        # An opaque mark hides what the lower layers have in the directory, and not the directory itself.
        if found.hidden_above if left_out else found.last:
            break
        hidden = hidden or found.attributes is not None
    return _Effective(DEFAULT, hidden=False)


def _lookup(top: Path, path: str) -> _Found:
    """Open one component after the other, never through a symlink."""
    fd = os.open(top, OPEN_DIRECTORY)
    last = hidden_above = False
    try:
        for name in _components(path):
            child = os.open(name, OPEN_DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = child
            hidden_above, last = last, last or is_opaque(fd)
        found = os.fstat(fd)
    except FileNotFoundError:
        return _Found(None, last)
    except OSError:  # not a directory, so it hides the layers below, as an opaque directory does
        return _Found(None, last=True)
    finally:
        os.close(fd)
    return _Found(Attributes(stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid), last, hidden_above)


def _components(path: str) -> Iterator[str]:
    return (part for part in PurePosixPath(path).parts if part != ".")


def is_opaque(fd: int) -> bool:
    """Whether the directory hides those of lower layers."""
    try:
        return os.getxattr(fd, "trusted.overlay.opaque") == b"y"
    except OSError:
        return False


def serialized(directories: dict[str, Attributes]) -> Iterable[str]:
    """One line for each directory; equal for equal arguments, for the layer's key is a digest of it."""
    return (f"{path}\0{mode:o}\0{uid}\0{gid}" for path, (mode, uid, gid) in sorted(directories.items()))
