# SPDX-License-Identifier: Apache-2.0
"""What the Proxmox API was asked for: requests by its access log, tasks by its task list."""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from trial.proxmox import ProxmoxView

DAEMON = "pvecri"
"""The User-Agent of the daemon's requests; our own have another."""

HEALTH = "GET /version"
"""What the daemon asks every some seconds, whether there are pods or not."""

REMOVAL_TIMEOUT = 60.0

READING = frozenset({"GET", "HEAD"})

_LINE = re.compile(r'"(?P<method>[A-Z]+) /api2/json(?P<path>/[^ ?"]*)[^"]*" \d+ .*"(?P<agent>[^"]*)"$')
_NAMES = ((re.compile(r"UPID:[^/]+"), "{upid}"), (re.compile(r"(?<=^/nodes/)[^/]+"), "{node}"))
_VMID = re.compile(r"(?<=/lxc/)\d+")


@dataclass(frozen=True)
class Entry:
    """Where the books stood at a moment."""

    lines: int
    tasks: frozenset[str]


@dataclass(frozen=True)
class Account:
    """What was asked for between two moments: how often each `METHOD /path`, and how many tasks of each type."""

    requests: Counter[str]
    tasks: Counter[str]

    @property
    def changing(self) -> int:
        """How many requests were made to change something."""
        return sum(number for name, number in self.requests.items() if name.split()[0] not in READING)

    @property
    def reading(self) -> int:
        """How many were not."""
        return self.requests.total() - self.changing


class Ledger:
    """The books of one embedded node."""

    def __init__(self, access_log: Path, view: ProxmoxView, node: str) -> None:
        self._access_log = access_log
        self._view = view
        self._node = node

    def now(self) -> Entry:
        """Where the books stand."""
        tasks = frozenset(self._tasks())
        return Entry(len(self._lines()), tasks)

    def since(self, entry: Entry) -> Account:
        """What was asked for since then, but for the daemon's question whether Proxmox is there."""
        # This request comes after all that are to be counted, so their lines are written when it is answered.
        tasks = {upid: kind for upid, kind in self._tasks().items() if upid not in entry.tasks}
        requests = Counter(filter(None, map(read_line, self._lines()[entry.lines :])))
        del requests[HEALTH]
        return Account(requests, Counter(tasks.values()))

    def wait_for_removals(self) -> None:
        """Until the node has no CT: those of removed pods are destroyed in the background. TimeoutError."""
        deadline = time.monotonic() + REMOVAL_TIMEOUT
        while self._view.get(f"/nodes/{self._node}/lxc"):
            if time.monotonic() > deadline:
                raise TimeoutError("CTs of removed pods are left")
            time.sleep(0.05)

    def _lines(self) -> list[str]:
        return self._access_log.read_text().splitlines()

    def _tasks(self) -> dict[str, str]:
        """The type of each task that the node remembers, by UPID."""
        tasks: list[dict[str, str]] = self._view.get(f"/nodes/{self._node}/tasks?source=all&limit=1000")
        return {task["upid"]: task["type"] for task in tasks}


def read_line(line: str) -> str:
    """`METHOD /path` of a line of the access log, without what differs from CT to CT; empty for others' requests.

    Pure.
    """
    match = _LINE.search(line)
    if match is None or match["agent"] != DAEMON:
        return ""
    path = _VMID.sub("{vmid}", unquote(match["path"]))
    for pattern, name in _NAMES:
        path = pattern.sub(name, path)
    return f"{match['method']} {path}"
