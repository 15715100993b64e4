# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading
from pathlib import Path

import pytest

from pvecri.linux import namespaces


def test_what_is_done_inside_is_done_in_a_thread_that_ends_with_it() -> None:
    inside = namespaces.run_inside([], threading.current_thread)
    assert inside is not threading.current_thread()
    assert not inside.is_alive()


def test_what_fails_inside_is_raised_outside() -> None:
    with pytest.raises(ZeroDivisionError):
        namespaces.run_inside([], lambda: 1 // 0)


def test_a_namespace_that_is_not_there_is_told_by_its_path_and_nothing_is_done(tmp_path: Path) -> None:
    done: list[int] = []
    with pytest.raises(FileNotFoundError, match="nothing"):
        namespaces.run_inside([tmp_path / "nothing"], lambda: done.append(1))
    assert done == []


def test_a_file_that_is_no_namespace_cannot_be_entered(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        namespaces.run_inside([tmp_path / "file"], lambda: None)


def test_a_pin_that_fails_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="pin"):
        namespaces.pin(tmp_path / "nothing", tmp_path / "pin")
    assert not (tmp_path / "pin").exists()


def test_unpinning_what_is_not_pinned_is_fine(tmp_path: Path) -> None:
    (tmp_path / "pin").touch()
    for _ in range(2):
        namespaces.unpin(tmp_path / "pin")
    assert not (tmp_path / "pin").exists()
