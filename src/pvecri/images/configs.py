# SPDX-License-Identifier: Apache-2.0
"""The directory of image configs, byte by byte as the registry has them, by digest: `sha256/<hex>`.

Of an artifact it has the manifest: always the document whose digest is the image's ID.
"""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

from pvecri.images.manifest import MAX_DOCUMENT, BadImage, digest_of
from pvecri.linux.files import write_atomically


class Configs:
    """The configs below `root`. All methods block, for one small file."""

    def __init__(self, root: Path) -> None:
        self._directory = root / "sha256"

    def setup(self) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory.parent.chmod(0o700)  # an image's environment may have secrets

    def is_whole(self, digest: str) -> bool:
        """Whether the config is there and undamaged: a power cut may leave one with no or other content."""
        try:
            self.read(digest)
        except BadImage:
            return False
        return True

    def read(self, digest: str) -> bytes:
        """BadImage if it is missing or has another digest."""
        try:
            with self._path(digest).open("rb") as file:
                data = file.read(MAX_DOCUMENT + 1)
        except FileNotFoundError as error:
            raise BadImage(f"the config {digest} is missing") from error
        if digest_of(data) != digest:
            raise BadImage(f"the config {digest} is damaged")
        return data

    def add(self, data: bytes) -> None:
        """Write the config, atomically. As nothing in a pull is, it is not synced (decision 0014)."""
        write_atomically(self._path(digest_of(data)), data)

    def sweep(self, keep: Set[str]) -> None:
        """Delete all others."""
        for path in list(self._directory.iterdir()):
            if f"sha256:{path.name}" not in keep:
                path.unlink()

    def _path(self, digest: str) -> Path:
        return self._directory / digest.removeprefix("sha256:")
