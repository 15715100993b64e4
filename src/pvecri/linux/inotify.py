# SPDX-License-Identifier: Apache-2.0
"""inotify(7) on one directory, as an asyncio reader."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Callable
from pathlib import Path

from pvecri.linux import libc

IN_CLOSE_WRITE = 0x8
IN_MOVED_TO = 0x80
IN_NONBLOCK = os.O_NONBLOCK
IN_CLOEXEC = os.O_CLOEXEC

_HEADER = struct.Struct("iIII")


class DirectoryWatch:
    """Calls `on_file(name)` for each file in `directory` that was written and closed, or moved in.

    A file may be reported twice; files that are there already are not reported. `close` ends it.
    """

    def __init__(self, directory: Path, on_file: Callable[[str], None]) -> None:
        self._on_file = on_file
        self._fd = libc.call("inotify_init1", IN_NONBLOCK | IN_CLOEXEC)
        try:
            libc.call(
                "inotify_add_watch",
                self._fd,
                os.fsencode(directory),
                IN_CLOSE_WRITE | IN_MOVED_TO,
                path=str(directory),
            )
            asyncio.get_running_loop().add_reader(self._fd, self._read)
        except BaseException:
            os.close(self._fd)
            raise

    def _read(self) -> None:
        data = os.read(self._fd, 1 << 16)
        offset = 0
        while offset < len(data):
            length = _HEADER.unpack_from(data, offset)[3]
            offset += _HEADER.size
            name = data[offset : offset + length].rstrip(b"\0")
            offset += length
            if name:
                self._on_file(os.fsdecode(name))

    def close(self) -> None:
        """Stop watching."""
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)
