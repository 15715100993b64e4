# SPDX-License-Identifier: Apache-2.0
"""A layer applied to the files of those below. Standard library only; runs confined (worker.py).

For drivers whose layers are whole trees. A whiteout removes the lower layers' files of its name, never files of
its own layer, even if they come first in the archive (OCI image-spec, layer.md).
"""

# Names in archives are bytes, which pathlib does not take.
# ruff: noqa: PTH108, PTH112, PTH116, PTH208
from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tarfile
from dataclasses import dataclass, field

from pvecri.images.unpacking.overlay_layer import OPAQUE, WHITEOUT, LayerTree


@dataclass
class StackedTree(LayerTree):
    """As LayerTree, in a directory with the files of the lower layers."""

    made: set[int] = field(default_factory=set)
    """Hashes of this layer's paths: five million paths themselves would exceed the address space limit."""

    def _resolve(self, path: bytes) -> bytes:
        directory, _, name = path.rpartition(b"/")
        if directory != self._resolved[0] and (name == OPAQUE or not name.startswith(WHITEOUT)):
            self._replace_lower_file(directory)
        return super()._resolve(path)

    def _replace_lower_file(self, directory: bytes) -> None:
        """Remove a lower layer's file, or link to a file, at `directory` or above it.

        A directory replaces it, as with overlayfs, where this layer's directory hides it.
        """
        if os.path.isdir(directory or b"/"):
            return
        place = b""
        for name in directory.split(b"/")[1:]:
            place += b"/" + name
            try:
                if stat.S_ISDIR(os.stat(place).st_mode):
                    continue
            except NotADirectoryError:  # a link to something below a file
                pass
            except OSError:  # nothing is there, or a loop of links
                return
            real = os.path.realpath(place.rpartition(b"/")[0] or b"/").rstrip(b"/") + b"/" + name
            if not self._is_own(real):
                os.unlink(real)
            return

    def _apply_metadata(self, path: bytes, member: tarfile.TarInfo) -> None:
        self._note(path)
        if member.isdir():
            _strip(path)  # a lower layer's attributes; this layer's entry has all that the directory should have
        super()._apply_metadata(path, member)

    def _note(self, path: bytes) -> None:
        """Record a path of this layer, and the directories above, which are then of this layer, too."""
        while path not in {b"", b"/"} and hash(path) not in self.made:
            # Python keys the hash of bytes at random in each process: an archive cannot be made to collide.
            self.made.add(hash(path))
            path = path.rpartition(b"/")[0]

    def _hide(self, path: bytes) -> None:
        try:
            mode = os.lstat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return
        if not self._is_own(path):
            _remove(path, mode)
        elif stat.S_ISDIR(mode):  # of this layer, but with files of lower ones
            self._hide_below(path)

    def _hide_below(self, directory: bytes) -> None:
        for name in os.listdir(directory):
            self._hide(directory.rstrip(b"/") + b"/" + name)

    def _is_own(self, path: bytes) -> bool:
        return hash(path) in self.made or path in self.implicit


def _remove(path: bytes, mode: int) -> None:
    if stat.S_ISDIR(mode):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def _strip(path: bytes) -> None:
    """Remove the attributes that a layer can set."""
    for name in os.listxattr(path):
        if name.startswith(("user.", "system.posix_acl_")):
            with contextlib.suppress(OSError):
                os.removexattr(path, name)
