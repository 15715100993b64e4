# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import resource
import subprocess
import time
from pathlib import Path

import pytest

from pvecri.images import usage as usage_module
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


def make_deep(top: Path, depth: int) -> None:
    """A chain of directories with a file of 64 KiB at its end, deeper than PATH_MAX and the recursion limit."""
    fd = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    file = os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
    os.write(file, os.urandom(65_536))
    os.close(file)
    os.close(fd)


def test_any_depth_is_counted_with_few_descriptors(tmp_path: Path) -> None:
    depth = 5_000
    top = tmp_path / "top"
    top.mkdir()
    make_deep(top, depth)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(each.name) for each in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 8, limits[1]))
    try:
        usage = tree_usage(top)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        subprocess.run(["rm", "-rf", str(top)], check=True)
    assert usage.inodes == depth + 2
    assert usage.bytes >= 65_536


def test_siblings_at_every_level_are_counted(tmp_path: Path) -> None:
    places = [tmp_path / one / two / three for one in "abc" for two in "abc" for three in "abc"]
    for place in places:
        place.mkdir(parents=True)
        (place / "file").touch()
    assert tree_usage(tmp_path).inodes == 1 + 3 + 9 + 27 + 27


@pytest.mark.parametrize("change", ["move", "remove", "swap"])
def test_directory_that_goes_while_it_is_counted_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """A container must not shorten the count by moving the directory that is being read."""
    top, outside = tmp_path / "top", tmp_path / "outside"
    for name in ("a/b/c", "a/b/d", "a/e", "f"):
        (top / name).mkdir(parents=True)
    (outside / "secret/deep").mkdir(parents=True)
    read = usage_module._entries
    done: list[Path] = []

    def disturbed(fd: int, links: set[int]) -> tuple[int, int, list[str]]:
        here = Path(f"/proc/self/fd/{fd}").readlink()
        found = read(fd, links)
        if here.parent.name == "b" and not done:
            done.append(here)
            if change == "move":
                here.rename(top / "f/moved")
            else:
                here.rmdir()
            if change == "swap":
                here.symlink_to(outside)
        return found

    monkeypatch.setattr(usage_module, "_entries", disturbed)
    counted = tree_usage(top).inodes
    assert done
    assert 7 <= counted <= 8  # top, a, b, c, d, e, f; what was moved may count twice


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
