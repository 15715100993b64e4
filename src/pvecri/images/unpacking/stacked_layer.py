# SPDX-License-Identifier: Apache-2.0
"""A layer applied to those below, which the directory holds. Standard library only; runs confined (unpack.py).

For storage that keeps whole trees: a whiteout removes what lower layers have by its name, never what its own layer
has, wherever in the archive it stands. See OCI image-spec, layer.md.
"""

# Names in archives are bytes, which pathlib does not take.
# ruff: noqa: PTH108, PTH208
from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tarfile
from dataclasses import dataclass, field

from pvecri.images.unpacking.overlay_layer import LayerTree


@dataclass
class StackedTree(LayerTree):
    """As LayerTree, on top of what is there."""

    made: set[int] = field(default_factory=set)
    """Hashes of the paths that this layer has; five million paths themselves would not fit."""

    def _dress(self, path: bytes, member: tarfile.TarInfo) -> None:
        """The layer's entry for a directory says all that there is to say of it."""
        self._note(path)
        if member.isdir():
            _strip(path)
        super()._dress(path, member)

    def _note(self, path: bytes) -> None:
        """The path is the layer's own, and so are the directories above, whoever made them first."""
        while path not in {b"", b"/"} and hash(path) not in self.made:
            self.made.add(hash(path))
            path = path.rpartition(b"/")[0]

    def _hide(self, path: bytes) -> None:
        try:
            mode = os.lstat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return
        if not self._is_own(path):
            _remove(path, mode)
        elif stat.S_ISDIR(mode):
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
    """Of a directory's attributes those that a layer may set."""
    for name in os.listxattr(path):
        if name.startswith(("user.", "system.posix_acl_")):
            with contextlib.suppress(OSError):
                os.removexattr(path, name)
