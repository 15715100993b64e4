# SPDX-License-Identifier: Apache-2.0
"""The OCI runtimes' own record of a container (`--root`/ID), moved from one PID namespace to another.

runc and crun record the PID of a container's first process as they see it. A container of a front is created in
its CT's PID namespace and used from the node's, where that process has another PID.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from pvecri.errors import InternalError
from pvecri.linux import files

_FILES = ("state.json", "status")
"""runc's and crun's."""


def translate_pid(directory: Path, old: int, new: int) -> None:
    """Replace a container's PID in its record. Idempotent; InternalError if there is none that pvecri can read."""
    path = next((directory / name for name in _FILES if (directory / name).exists()), None)
    if path is None:
        raise InternalError(f"{directory} has no state of the OCI runtime")
    try:
        state = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise InternalError(f"{path} is not a record of the OCI runtime: {error}") from error
    _translate(state, old, new)
    files.write_atomically(path, msgspec.json.encode(state))


def _translate(state: dict[str, Any], old: int, new: int) -> None:
    for name in ("init_process_pid", "pid"):
        if state.get(name) == old:
            state[name] = new
    paths = state.get("namespace_paths")
    if isinstance(paths, dict):
        own = f"/proc/{old}/"
        for kind, path in paths.items():
            if isinstance(path, str) and path.startswith(own):
                paths[kind] = f"/proc/{new}/{path.removeprefix(own)}"


def is_started(directory: Path) -> bool:
    """Whether a container that was created has been started: its process waits at a FIFO until then."""
    return not (directory / "exec.fifo").exists()
