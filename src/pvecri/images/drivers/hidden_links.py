# SPDX-License-Identifier: Apache-2.0
"""Symlinks of lower layers that a directory of the topmost one would hide (decision 0076).

An archive may have `lib/x` without `lib`, over a layer in which `lib` is a symlink to `usr/lib`. Extracted on top
of that layer, as its builder expects, it is `usr/lib/x`. Extracted alone the layer gets a directory `lib`, with
which overlayfs hides the link and what it leads to. So the layer is extracted again, with the links found here.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from enum import Enum, auto
from pathlib import Path
from typing import Final, NamedTuple

from pvecri.images.drivers.parents import OPEN_DIRECTORY, ExtractedLayer, is_opaque

MAX_LINKS: Final = 40
"""Links on the way to one directory: the kernel refuses more of them (ELOOP, path_resolution(7))."""

_Place = tuple[str, ...]
"""The components of a path from the image's root; none of those above the last one is a link."""


class _Kind(Enum):
    MISSING = auto()
    DIRECTORY = auto()
    LINK = auto()
    OTHER = auto()


class _Entry(NamedTuple):
    """What one layer has at a place.

    `hides` if layers below do not show through; `hidden_above` if a directory above hides them already.
    """

    kind: _Kind
    target: str = ""
    hides: bool = False
    hidden_above: bool = False


def hidden_links(layers: Sequence[ExtractedLayer]) -> dict[str, str]:
    """The symlinks on the way to directories that the topmost layer's archive left out: their targets by path.

    `layers` lowest first. Empty for nearly all images. A link to something that is no directory is not among them:
    the left-out directory takes its place. Blocks. Layers are untrusted: the kernel follows no link in them, and
    `..` does not lead above the image's root.
    """
    implicit = sorted(layers[-1].implicit - {"."})
    if not implicit or len(layers) == 1:
        return {}
    view = _View(layers)
    links: dict[_Place, str] = {}
    places: dict[str, _Place | None] = {"": ()}
    for path in implicit:
        names = path.split("/")
        for end in range(1, len(names) + 1):
            prefix, parent = "/".join(names[:end]), places["/".join(names[: end - 1])]
            if prefix not in places:
                places[prefix], more = (None, {}) if parent is None else view.follow((*parent, names[end - 1]))
                links |= more
    return {"/".join(place): target for place, target in links.items()}


class _View:
    """What the topmost layer's archive is extracted to: the layers below, and what it has itself."""

    def __init__(self, layers: Sequence[ExtractedLayer]) -> None:
        self._layers = layers
        self._known: dict[_Place, _Entry] = {}

    def follow(self, place: _Place) -> tuple[_Place | None, dict[_Place, str]]:
        """Where `place` leads to, and by which links; it need not exist. None if something else is there.

        The links of a loop are returned, and the place at which it was left.
        """
        links: dict[_Place, str] = {}
        here, names, followed = place[:-1], [place[-1]], 0
        while names:
            name = names.pop()
            if name == "..":
                here = here[:-1]
            elif name not in {"", "."}:
                here = (*here, name)
                entry = self._entry(here)
                if entry.kind is _Kind.OTHER:
                    return None, {}
                if entry.kind is _Kind.LINK and followed < MAX_LINKS:
                    links[here] = entry.target
                    followed += 1
                    here = () if entry.target.startswith("/") else here[:-1]
                    names += reversed(entry.target.split("/"))
        return here, links

    def _entry(self, place: _Place) -> _Entry:
        if place not in self._known:
            self._known[place] = self._find(place)
        return self._known[place]

    def _find(self, place: _Place) -> _Entry:
        top = self._layers[-1]
        above = self._known.get(place[:-1])
        # Below what no lower layer has there is nothing of a lower layer, however many there are.
        nothing_below = above is not None and above.kind is _Kind.MISSING
        for layer in [top] if nothing_below else reversed(self._layers):
            found = _lookup(layer.top, place)
            # A directory that the archive left out is whatever lower layers have there.
            left_out = layer is top and found.kind is _Kind.DIRECTORY and "/".join(place) in layer.implicit
            if left_out and not found.hidden_above:
                continue
            if found.hides or found.kind is not _Kind.MISSING:
                return found
        return _Entry(_Kind.MISSING)


def _lookup(top: Path, place: _Place) -> _Entry:
    hides = hidden_above = False
    fd = os.open(top, OPEN_DIRECTORY)
    try:
        for depth, name in enumerate(place, 1):
            found = os.lstat(name, dir_fd=fd)
            if not stat.S_ISDIR(found.st_mode):
                return _other(found, name, fd, is_last=depth == len(place))
            child = os.open(name, OPEN_DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = child
            hidden_above, hides = hides, hides or is_opaque(fd)
    except FileNotFoundError:
        return _Entry(_Kind.MISSING, hides=hides)
    finally:
        os.close(fd)
    return _Entry(_Kind.DIRECTORY, hides=hides, hidden_above=hidden_above)


def _other(found: os.stat_result, name: str, fd: int, *, is_last: bool) -> _Entry:
    whiteout = stat.S_ISCHR(found.st_mode) and found.st_rdev == 0
    if whiteout or not is_last:
        return _Entry(_Kind.MISSING, hides=True)
    target = os.readlink(name, dir_fd=fd) if stat.S_ISLNK(found.st_mode) else ""
    # One that is not UTF-8 could not be passed on.
    if target and target.isprintable():
        return _Entry(_Kind.LINK, target, hides=True)
    return _Entry(_Kind.OTHER, hides=True)
