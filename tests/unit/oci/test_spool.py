# SPDX-License-Identifier: Apache-2.0
"""The output of a command: bounded in memory and altogether, and read to its end even on a full disk."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvecri.linux import mounts
from pvecri.linux.fds import AsyncFd
from pvecri.oci.spool import IN_MEMORY, OUTPUT_LIMIT, Spool


async def filled(directory: Path, size: int) -> tuple[bytes, bool]:
    """What is kept of `size` bytes that a process writes, and whether that is large."""
    reading, writing = os.pipe()
    source = f"import sys; [sys.stdout.buffer.write(bytes([n % 251]) * 65536) for n in range({size // 65536})]"
    writer = await asyncio.to_thread(subprocess.Popen, [sys.executable, "-c", source], stdout=writing)
    os.close(writing)
    stream = AsyncFd(reading)
    try:
        with Spool(directory) as spool:
            await spool.fill(stream)
            assert await asyncio.to_thread(writer.wait) == 0
            return spool.read(), spool.large
    finally:
        stream.close()


@pytest.mark.parametrize(
    ("size", "kept", "large"),
    [
        (0, 0, False),
        (IN_MEMORY, IN_MEMORY, False),
        (2 * IN_MEMORY, 2 * IN_MEMORY, True),
        (OUTPUT_LIMIT + IN_MEMORY, OUTPUT_LIMIT, True),
    ],
)
async def test_first_bytes_are_kept(tmp_path: Path, size: int, kept: int, large: bool) -> None:
    output, is_large = await filled(tmp_path, size)
    assert output == b"".join(bytes([n % 251]) * 65536 for n in range(kept // 65536))
    assert (is_large, list(tmp_path.iterdir())) == (large, [])


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A filesystem with 2 MiB."""
    mounts.mount("small", tmp_path, "tmpfs", 0, "size=2m")
    yield tmp_path
    mounts.umount(tmp_path, detach=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
async def test_output_on_a_full_disk_is_truncated(small: Path) -> None:
    output, _ = await filled(small, 8 * IN_MEMORY)
    assert IN_MEMORY <= len(output) <= 2 * IN_MEMORY
    assert output == b"".join(bytes([n % 251]) * 65536 for n in range(32))[: len(output)]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
async def test_output_on_a_disk_without_any_room_is_what_fits_into_memory(small: Path) -> None:
    (small / "fill").write_bytes(bytes(2 << 20))
    output, _ = await filled(small, 8 * IN_MEMORY)
    assert output == b"".join(bytes([n % 251]) * 65536 for n in range(len(output) // 65536))
    assert len(output) <= IN_MEMORY + 65536
