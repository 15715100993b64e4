# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading
from pathlib import Path

import pytest

from pvecri.linux import namespaces


def test_run_inside_uses_a_thread_of_its_own() -> None:
    inside = namespaces.run_inside([], threading.current_thread)
    assert inside is not threading.current_thread()
    assert not inside.is_alive()


def test_run_inside_raises_the_functions_exception() -> None:
    with pytest.raises(ZeroDivisionError):
        namespaces.run_inside([], lambda: 1 // 0)


def test_missing_namespace_is_named_and_nothing_runs(tmp_path: Path) -> None:
    done: list[int] = []
    with pytest.raises(FileNotFoundError, match="nothing"):
        namespaces.run_inside([tmp_path / "nothing"], lambda: done.append(1))
    assert done == []


def test_setns_refuses_an_ordinary_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        namespaces.run_inside([tmp_path / "file"], lambda: None)


def test_failed_pin_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="pin"):
        namespaces.pin(tmp_path / "nothing", tmp_path / "pin")
    assert not (tmp_path / "pin").exists()


def test_unpin_is_idempotent(tmp_path: Path) -> None:
    (tmp_path / "pin").touch()
    for _ in range(2):
        namespaces.unpin(tmp_path / "pin")
    assert not (tmp_path / "pin").exists()
