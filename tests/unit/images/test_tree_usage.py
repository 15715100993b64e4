# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pvecri.images.usage import Meter, Usage, tree_usage


def test_usage_of_a_missing_directory_is_zero(tmp_path: Path) -> None:
    assert tree_usage(tmp_path / "missing") == Usage(0, 0)


def test_usage_counts_allocated_blocks_of_files_and_directories(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/file").write_bytes(os.urandom(10_000))
    blocks = sum(path.stat().st_blocks for path in (tmp_path, tmp_path / "a", tmp_path / "a/file"))
    assert tree_usage(tmp_path) == Usage(blocks * 512, 3)


def test_holes_and_hard_links_are_not_counted(tmp_path: Path) -> None:
    with (tmp_path / "hole").open("wb") as file:
        file.truncate(1 << 40)
    before = tree_usage(tmp_path)
    (tmp_path / "link").hardlink_to(tmp_path / "hole")
    assert before.bytes < 1 << 20
    assert tree_usage(tmp_path).inodes == before.inodes == 2


def test_symlinks_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path)
    assert tree_usage(tmp_path).inodes == 2


def test_meter_returns_tree_usage_and_forgets_removed_trees(tmp_path: Path) -> None:
    meter = Meter()
    assert meter.measure(tmp_path)[:2] == tree_usage(tmp_path)[:2]
    tmp_path.rmdir()
    meter.forget(tmp_path)
    assert meter.measure(tmp_path) == Usage(0, 0)


def test_cached_usage_has_the_time_of_its_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pvecri.images.usage._SLOW", 0.0)
    monkeypatch.setattr("pvecri.images.usage._CACHE_FACTOR", 1_000_000_000)
    meter, before = Meter(), time.time_ns()
    first = meter.measure(tmp_path)
    assert before <= first.counted <= time.time_ns()
    assert meter.measure(tmp_path) == first
