# SPDX-License-Identifier: Apache-2.0
"""The database of images: databases that it refuses, and transactions."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvecri.errors import InternalError
from pvecri.images.drivers.base import LayerKey
from pvecri.images.store import SCHEMA_VERSION, ImageRecord, LayerRecord, Store
from pvecri.model import Image, ImageConfig, ImageId


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "images.db"


def test_database_of_a_newer_version_is_refused_and_left_unchanged(path: Path) -> None:
    newer = sqlite3.connect(path)
    newer.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    newer.close()
    before = path.read_bytes()
    with pytest.raises(
        InternalError, match=rf"^{path}: written by a newer pvecri \(schema {SCHEMA_VERSION + 1}, "
    ):
        Store(path)
    assert path.read_bytes() == before


def test_file_that_is_no_database_is_refused_and_left_unchanged(path: Path) -> None:
    path.write_text("notes\n" * 1000)
    before = path.read_bytes()
    with pytest.raises(InternalError, match=rf"^{path}: file is not a database$"):
        Store(path)
    assert path.read_bytes() == before


def test_only_root_may_read_the_database(path: Path) -> None:
    Store(path).close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_failed_write_leaves_none_of_its_records(path: Path) -> None:
    store = Store(path)
    image = Image(id=ImageId("sha256:1"), size=1, diff_ids=(), config=ImageConfig())

    def layers() -> Iterator[LayerRecord]:
        yield LayerRecord(key=LayerKey("a"), diff_id="", blobs=(), bytes=0, inodes=0)
        raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        store.put(images=[ImageRecord(image=image, layers=())], layers=layers())
    assert (store.images(), store.layers()) == ([], [])
    store.put(images=[ImageRecord(image=image, layers=())])
    assert [record.image.id for record in store.images()] == ["sha256:1"]
    store.close()
