# SPDX-License-Identifier: Apache-2.0
"""The body of a request that has a file in it, which need not fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

_CHUNK: Final = 256 << 10


class FileBody(msgspec.Struct, frozen=True):
    """`head`, `size` bytes of `file`, and `tail`."""

    head: bytes
    file: Path
    size: int
    tail: bytes

    def __len__(self) -> int:
        return len(self.head) + self.size + len(self.tail)

    def chunks(self) -> Iterator[bytes]:
        """All of it. Blocks, for a local file. OSError if the file cannot be read or has become shorter."""
        yield self.head
        left = self.size
        with self.file.open("rb") as file:
            while left:
                chunk = file.read(min(left, _CHUNK))
                if not chunk:
                    raise OSError(f"{self.file}: has become shorter while it was sent")
                left -= len(chunk)
                yield chunk
        yield self.tail
