# SPDX-License-Identifier: Apache-2.0
"""The records of runc and crun, moved to the node's PID namespace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pvecri.errors import InternalError
from pvecri.oci.runtime_state import is_started, translate_pid

# As the programs write them, cut down.
RUNC: dict[str, Any] = {
    "id": "web",
    "init_process_pid": 17,
    "init_process_start": 4711,
    "created": "2026-11-27T23:00:00.123456789Z",
    "config": {"rootfs": "/r", "cgroups": {"path": "/lxc/900/web"}},
    "rootless": False,
    "cgroup_paths": {"": "/sys/fs/cgroup/lxc/900/web"},
    "namespace_paths": {
        "NEWNET": "/proc/17/ns/net",
        "NEWPID": "/proc/17/ns/pid",
        "NEWIPC": "/proc/170/ns/ipc",
        "NEWUTS": "/var/run/utsns/17/",
    },
    "external_descriptors": ["/dev/null", "pipe:[17]", "pipe:[18]"],
}
CRUN: dict[str, Any] = {
    "pid": 17,
    "process-start-time": 4711,
    "cgroup-path": "/lxc/900/web",
    "bundle": "/b",
    "created": "2026-11-27T23:00:00.123456Z",
    "rootfs": "/r",
}


def record(directory: Path, name: str, state: object) -> Path:
    """The record that a runtime has written."""
    path = directory / name
    path.write_text(json.dumps(state))
    path.chmod(0o644)
    return path


def test_runcs_record_has_the_nodes_pid(tmp_path: Path) -> None:
    path = record(tmp_path, "state.json", RUNC)
    translate_pid(tmp_path, 17, 98_765)
    paths = {**RUNC["namespace_paths"], "NEWNET": "/proc/98765/ns/net", "NEWPID": "/proc/98765/ns/pid"}
    assert json.loads(path.read_text()) == {**RUNC, "init_process_pid": 98_765, "namespace_paths": paths}


def test_cruns_record_has_the_nodes_pid(tmp_path: Path) -> None:
    path = record(tmp_path, "status", CRUN)
    translate_pid(tmp_path, 17, 98_765)
    assert json.loads(path.read_text()) == {**CRUN, "pid": 98_765}


@pytest.mark.parametrize(("name", "state"), [("state.json", RUNC), ("status", CRUN)])
def test_translation_is_idempotent_and_leaves_one_private_file(
    tmp_path: Path, name: str, state: dict[str, Any]
) -> None:
    path = record(tmp_path, name, state)
    translate_pid(tmp_path, 17, 98_765)
    once = path.read_text()
    translate_pid(tmp_path, 17, 98_765)
    assert path.read_text() == once
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o600


def test_missing_record_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InternalError, match="has no state of the OCI runtime"):
        translate_pid(tmp_path, 17, 18)


@pytest.mark.parametrize("text", ["", "{", "[]", "17"])
def test_unreadable_record_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(InternalError, match=r"state\.json is not a record"):
        translate_pid(tmp_path, 17, 18)
    assert (tmp_path / "state.json").read_text() == text


def test_container_is_started_once_its_fifo_is_gone(tmp_path: Path) -> None:
    assert is_started(tmp_path)
    (tmp_path / "exec.fifo").touch()
    assert not is_started(tmp_path)
