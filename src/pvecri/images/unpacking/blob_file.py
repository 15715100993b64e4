# SPDX-License-Identifier: Apache-2.0
"""A blob of an artifact as a file. Standard library only; runs confined (worker.py)."""

# Paths are bytes here as in the other modules that run confined, which pathlib does not take.
# ruff: noqa: PTH102
from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from typing import Any

from pvecri.images.unpacking.overlay_layer import BLOCK
from pvecri.images.unpacking.tar_stream import LayerError


def write(path: str, chunks: Iterator[bytes], max_size: int) -> dict[str, Any]:
    """Create the file `path`, relative to /, the layer's directory after chroot(2); its digest and disk usage.

    It belongs to root, like the directories above it, and cannot be executed.
    """
    place = b"/" + path.encode()
    directories = [place[:end] for end in range(1, len(place)) if place[end : end + 1] == b"/"]
    for directory in directories:  # not by makedirs(): its mode is for the last directory only
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o755)
    content = hashlib.sha256()
    size = 0
    fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    try:
        for chunk in chunks:
            size += len(chunk)
            if size > max_size:
                raise LayerError(f"it is larger than {max_size} bytes (images.max_layer_size)")
            content.update(chunk)
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(fd, rest) :]
    finally:
        os.close(fd)
    return {
        "diff_id": f"sha256:{content.hexdigest()}",
        "bytes": (1 + len(directories) + -(-size // BLOCK)) * BLOCK,
        "inodes": 1 + len(directories) + 1,
    }
