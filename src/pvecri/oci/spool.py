# SPDX-License-Identifier: Apache-2.0
"""The output of a command, kept until its end: in memory while it is small, beyond that in an unlinked file."""

from __future__ import annotations

import logging
from pathlib import Path
from tempfile import SpooledTemporaryFile
from types import TracebackType
from typing import Final

from pvecri.linux.fds import AsyncFd

log = logging.getLogger(__name__)

OUTPUT_LIMIT: Final = 16 << 20
"""Bytes of stdout and of stderr that ExecSync returns at most, as with CRI-O and containerd."""
IN_MEMORY: Final = 1 << 20
"""Bytes in memory; a probe's output is never larger, and many commands may run at once."""


class Spool:
    """Keeps the first OUTPUT_LIMIT bytes; a context that frees them. On a full disk the first IN_MEMORY bytes."""

    def __init__(self, directory: Path) -> None:
        self._file: SpooledTemporaryFile[bytes] = SpooledTemporaryFile(IN_MEMORY, dir=str(directory))  # noqa: SIM115, closed by __exit__
        self._size = 0
        self._full = False

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def large(self) -> bool:
        """Whether it is more than is kept in memory."""
        return self._size > IN_MEMORY

    async def fill(self, stream: AsyncFd) -> None:
        """Read a pipe to EOF: also what is not kept, else its writer would block."""
        while chunk := await stream.read(1 << 16):
            kept = chunk[: OUTPUT_LIMIT - self._size]
            if not kept or self._full:
                continue
            try:
                self._file.write(kept)
            except OSError as error:  # ENOSPC, EDQUOT, EIO
                log.warning("the output of a command is truncated to %d bytes: %s", self._size, error)
                self._full = True
            else:
                self._size += len(kept)

    def read(self) -> bytes:
        """What was kept."""
        self._file.seek(0)
        return self._file.read(self._size)
