# SPDX-License-Identifier: Apache-2.0
"""The directory of blobs that skopeo fetches into and does not fetch again from: `sha256/<hex>`.

Configs stay. A layer's blob is of no use once it is unpacked, except that its being there tells
skopeo not to fetch it: so it becomes a hole of its size, which takes no space.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Set
from pathlib import Path

from pvecri.images.manifest import MAX_DOCUMENT, BadImage, digest_of


class Blobs:
    """The blobs below `root`. All methods block."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._directory = root / "sha256"

    def setup(self) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.root.chmod(0o700)

    def path(self, digest: str) -> Path:
        return self._directory / digest.removeprefix("sha256:")

    def document(self, digest: str) -> bytes:
        """A manifest or config; BadImage when it is missing or too large to be one."""
        try:
            with self.path(digest).open("rb") as file:
                data = file.read(MAX_DOCUMENT + 1)
        except FileNotFoundError as error:
            raise BadImage(f"{digest} was not fetched") from error
        if len(data) > MAX_DOCUMENT:
            raise BadImage(f"{digest} is larger than {MAX_DOCUMENT} bytes")
        return data

    def add(self, data: bytes) -> None:
        """Keep a document under its digest."""
        self.path(digest_of(data)).write_bytes(data)

    def sweep(self, keep: Set[str], hollow: Set[str]) -> None:
        """Delete all blobs but the digests in `keep` and `hollow`, and empty those in `hollow`.

        No pull may be under way: it could be reading them.
        """
        for entry in list(os.scandir(self._directory)):
            digest = f"sha256:{entry.name}"
            if digest in hollow:
                _hollow(Path(entry.path))
            elif digest not in keep:
                Path(entry.path).unlink()

    def missing(self, digests: Iterable[str]) -> list[str]:
        """Those of the digests that are not here."""
        return [digest for digest in digests if not self.path(digest).exists()]


def _hollow(path: Path) -> None:
    found = path.stat()
    if found.st_blocks:
        os.truncate(path, 0)
        os.truncate(path, found.st_size)
