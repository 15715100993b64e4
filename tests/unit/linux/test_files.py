# SPDX-License-Identifier: Apache-2.0
"""Files that are replaced as a whole, on a real filesystem that becomes full."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pvecri.linux import mounts
from pvecri.linux.files import write_atomically


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    mounts.mount("full", tmp_path, "tmpfs", 0, "size=64k")
    try:
        (tmp_path / "file").write_text("old")
        with (tmp_path / "filler").open("wb", buffering=0) as filler, suppress(OSError):
            while filler.write(b"\0" * 4096):
                pass
        yield tmp_path
    finally:
        mounts.umount(tmp_path, detach=True)


def test_file_is_created_for_the_owner_alone_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_text() == "two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["config.json"]


def test_old_file_stays_if_the_new_one_cannot_be_written(full: Path) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        write_atomically(full / "file", b"new")
    assert (full / "file").read_text() == "old"
    assert sorted(each.name for each in full.iterdir()) == ["file", "filler"]
