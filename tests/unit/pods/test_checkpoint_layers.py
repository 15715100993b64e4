# SPDX-License-Identifier: Apache-2.0
"""What a container has written and removed, as a checkpoint's archive tells it."""

from __future__ import annotations

import os
import stat
import tarfile
from pathlib import Path

import pytest

from pvecri.pods.container.checkpoint import pack_layer


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    """An overlay's upper directory."""
    directory = tmp_path / "upper"
    directory.mkdir()
    return directory


def whiteout(path: Path) -> None:
    """What overlayfs puts in the place of a file of a lower layer that was removed; the kernel lets anyone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))


def test_written_files_are_packed_unchanged(upper: Path, tmp_path: Path) -> None:
    (upper / "etc").mkdir(mode=0o750)
    (upper / "etc/passwd").write_text("root:x:0:0::/:\n")
    (upper / "etc/passwd").chmod(0o604)
    (upper / "etc/link").symlink_to("../passwd")
    assert pack_layer(upper, tmp_path / "diff.tar") == []
    with tarfile.open(tmp_path / "diff.tar") as tar:
        packed = {member.name: (member.type, member.mode & 0o777) for member in tar if member.name != "./etc/link"}
        assert tar.getmember("./etc/link").linkname == "../passwd"
    assert packed == {
        ".": (tarfile.DIRTYPE, stat.S_IMODE(upper.stat().st_mode)),
        "./etc": (tarfile.DIRTYPE, 0o750),
        "./etc/passwd": (tarfile.REGTYPE, 0o604),
    }


def test_whiteouts_are_returned_as_paths_and_not_packed(upper: Path, tmp_path: Path) -> None:
    whiteout(upper / "etc/motd")
    whiteout(upper / "init")
    assert sorted(pack_layer(upper, tmp_path / "diff.tar")) == ["/etc/motd", "/init"]
    with tarfile.open(tmp_path / "diff.tar") as tar:
        assert sorted(tar.getnames()) == [".", "./etc"]


def test_long_unicode_names_are_preserved(upper: Path, tmp_path: Path) -> None:
    name = "ü" * 120
    (upper / name).write_text("x")
    pack_layer(upper, tmp_path / "diff.tar")
    with tarfile.open(tmp_path / "diff.tar") as tar:
        assert f"./{name}" in tar.getnames()


def test_unchanged_container_has_an_empty_layer(upper: Path, tmp_path: Path) -> None:
    assert pack_layer(upper, tmp_path / "diff.tar") == []
    with tarfile.open(tmp_path / "diff.tar") as tar:
        assert tar.getnames() == ["."]
