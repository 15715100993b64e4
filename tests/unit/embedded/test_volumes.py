# SPDX-License-Identifier: AGPL-3.0-or-later
from __future__ import annotations

from pathlib import Path

import pytest

from pvecri_embedded.storage.volumes import Storage, VolumeError, format_size, parse_size


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0T"), (1024**3, "1G"), (1536 * 1024**2, "1536M"), (1024**4, "1T"), (1000, "1000")]
)
def test_size_has_proxmoxs_format(size: int, text: str) -> None:
    assert format_size(size) == text
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "big", "1X", "-1G", "1 G"])
def test_invalid_size_is_refused(text: str) -> None:
    with pytest.raises(VolumeError, match="invalid size string"):
        parse_size(text)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("vztmpl/a.tar.gz", "template/cache/a.tar.gz"),
        ("iso/a.iso", "template/iso/a.iso"),
        ("900/vm-900-disk-0.raw", "images/900/vm-900-disk-0.raw"),
        ("900/subvol-900-disk-0.subvol", "images/900/subvol-900-disk-0.subvol"),
    ],
)
def test_volume_has_proxmoxs_path(tmp_path: Path, name: str, path: str) -> None:
    assert Storage("local", "dir", tmp_path).volume_path(name) == tmp_path / path


@pytest.mark.parametrize("name", ["vztmpl/../../x.tar", "../x", "900/../../x", "vztmpl//etc/passwd"])
def test_volume_name_that_leads_out_of_the_storage_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(VolumeError, match="unable to parse directory volume name"):
        Storage("local", "dir", tmp_path).volume_path(name)


def test_removed_volume_leaves_no_directory(tmp_path: Path) -> None:
    storage = Storage("local", "dir", tmp_path)
    storage.make_directories()
    storage.copy_from(Path(__file__), "900/vm-900-disk-0.raw")
    assert [volume.name for volume in storage.volumes()] == ["900/vm-900-disk-0.raw"]
    storage.free("900/vm-900-disk-0.raw")
    storage.free("900/vm-900-disk-0.raw")
    assert not (tmp_path / "images" / "900").exists()
