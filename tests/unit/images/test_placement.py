# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from pvecri.config.settings import Config, ConfigError, parse
from pvecri.images.placement import Memory, StoragePlace, placed

ZFS = StoragePlace(type="zfspool", pool="rpool/data")
BTRFS = StoragePlace(type="btrfs", path="/mnt/btrfs")
DIRECTORY = StoragePlace(type="dir", path="/mnt/ssd")
THIN = StoragePlace(type="lvmthin")
USUAL = Path("/var/lib/pvecri/images")


def settled(text: str, place: StoragePlace | None) -> tuple[str, Path, str]:
    """The driver, the root and the dataset."""
    config = placed(parse(f"[images]\n{text}"), place)
    return config.images.driver, config.images_root, config.images.dataset


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        (ZFS, ("zfs", USUAL, "rpool/data/pvecri")),
        (BTRFS, ("btrfs", Path("/mnt/btrfs/pvecri-images"), "")),
        (DIRECTORY, ("overlay", Path("/mnt/ssd/pvecri-images"), "")),
        (THIN, ("raw", USUAL, "")),
    ],
)
def test_storage_type_selects_driver_and_directory(place: StoragePlace, expected: tuple[str, Path, str]) -> None:
    assert settled('driver = "auto"\nstorage = "x"', place) == expected


def test_configured_driver_is_used_on_the_storage() -> None:
    assert settled('driver = "raw"\nstorage = "x"', BTRFS) == ("raw", Path("/mnt/btrfs/pvecri-images"), "")


def test_without_a_storage_auto_is_overlay_in_images_root() -> None:
    assert placed(Config(), None) == Config()
    assert settled('driver = "auto"\nroot = "/srv/images"', None) == ("overlay", Path("/srv/images"), "")


def test_configured_dataset_is_used() -> None:
    assert settled('driver = "auto"\nstorage = "x"\ndataset = "tank/x"', ZFS) == ("zfs", USUAL, "tank/x")


@pytest.mark.parametrize("kind", ["nfs", "cifs", "pbs", "rbd"])
def test_unsupported_storage_type_is_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match=rf"images\.storage: x is of type {kind}"):
        settled('storage = "x"', StoragePlace(type=kind, path="/mnt/pve/x"))


def test_root_and_storage_are_mutually_exclusive() -> None:
    with pytest.raises(ConfigError, match=r"images\.root or images\.storage"):
        parse('[images]\nroot = "/srv"\nstorage = "x"')


def test_storage_is_cached_by_its_name(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "storage.json")
    assert memory.recall("x") is None
    memory.remember("x", ZFS)
    assert Memory(tmp_path / "storage.json").recall("x") == ZFS
    assert memory.recall("y") is None
