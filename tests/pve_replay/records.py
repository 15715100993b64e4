# SPDX-License-Identifier: AGPL-3.0-or-later
"""Recorded requests to a real Proxmox VE node and its answers."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BESIDE_THE_REPOSITORY = Path(__file__).resolve().parents[3] / "shared" / "pve"


@dataclass(frozen=True)
class Record:
    """One request and its answer."""

    file: str
    name: str
    auth: str | None
    request: dict[str, Any]
    response: dict[str, Any]
    exitstatus: str | None
    """How the task ended whose UPID was answered."""

    @property
    def key(self) -> str:
        """The record's name over all files."""
        return f"{self.file}: {self.name}"


def directory() -> Path:
    """Where the records are, if they are: $PVECRI_PVE_RECORDS, or ../shared/pve beside the repository."""
    return Path(os.environ.get("PVECRI_PVE_RECORDS") or _BESIDE_THE_REPOSITORY)


def files() -> list[Path]:
    """The files of records, in the order in which they were recorded."""
    return sorted(directory().glob("*.json"))


def load(path: Path) -> list[Record]:
    """The requests of one file in order; entries without a request are left out."""
    return [_record(path.name, entry) for entry in json.loads(path.read_text()) if "request" in entry]


def _record(file: str, entry: dict[str, Any]) -> Record:
    final = entry.get("task_final_status") or {}
    return Record(file, entry["name"], entry["auth"], entry["request"], entry["response"], final.get("exitstatus"))
