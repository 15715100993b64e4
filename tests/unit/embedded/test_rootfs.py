# SPDX-License-Identifier: AGPL-3.0-or-later
from __future__ import annotations

import os
import stat
import tarfile
from pathlib import Path

import pytest

from pvecri_embedded.storage.rootfs import inside, write_entry

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users: needs root")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "outside").write_text("not the CT's")
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def entry(name: str, kind: bytes = tarfile.REGTYPE, *, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    return info


def test_owner_is_shifted_and_every_mode_bit_kept(root: Path) -> None:
    info = entry("tool", mode=0o4755)
    info.uid, info.gid = 5, 6
    write_entry(info, b"", root, 100_000)
    status = (root / "tool").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (100_005, 100_006, 0o4755)


@pytest.mark.parametrize(
    "info",
    [
        entry("../outside"),
        entry("a/../../outside"),
        entry("hard", tarfile.LNKTYPE, link="../outside"),
        entry("hard", tarfile.LNKTYPE, link="way/outside"),
        entry("way/new"),
        entry("way/outside", tarfile.DIRTYPE),
    ],
    ids=lambda info: f"{info.name}->{info.linkname}",
)
def test_entry_that_leads_out_of_the_root_is_refused(root: Path, info: tarfile.TarInfo) -> None:
    write_entry(entry("way", tarfile.SYMTYPE, link=".."), None, root, 0)
    with pytest.raises(tarfile.TarError):
        write_entry(info, b"", root, 0)
    assert sorted(path.name for path in root.parent.iterdir()) == ["outside", "root"]


def test_symlink_itself_may_point_anywhere(root: Path) -> None:
    write_entry(entry("bin", tarfile.SYMTYPE, link="/usr/bin"), None, root, 0)
    assert (root / "bin").readlink() == Path("/usr/bin")


def test_devices_and_what_lies_below_dev_are_left_out(root: Path) -> None:
    write_entry(entry("dev", tarfile.DIRTYPE, mode=0o755), None, root, 0)
    write_entry(entry("dev/null", tarfile.CHRTYPE), None, root, 0)
    assert [path.name for path in root.rglob("*")] == ["dev"]


def test_pipe_is_made_with_owner_and_mode(root: Path) -> None:
    write_entry(entry("pipe", tarfile.FIFOTYPE, mode=0o600), None, root, 1000)
    made = (root / "pipe").stat()
    assert (stat.S_ISFIFO(made.st_mode), made.st_mode & 0o777, made.st_uid) == (True, 0o600, 1000)


def test_path_in_the_root_is_found_through_its_symlinks(root: Path) -> None:
    (root / "real").mkdir()
    (root / "link").symlink_to("real")
    assert inside(root, "/link/file") == root / "real" / "file"
