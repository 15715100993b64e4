# SPDX-License-Identifier: Apache-2.0
"""Counting requests to the Proxmox API."""

from __future__ import annotations

from collections import Counter

import pytest
from pvecri_bench.ledger import Account, read_line
from pvecri_bench.sections.proxmox import average


def line(request: str, agent: str = "pvecri") -> str:
    return f'127.0.0.1 [23/Nov/2026:16:00:00 +0000] "{request} HTTP/1.1" 200 123 "-" "{agent}"'


@pytest.mark.parametrize(
    ("request_line", "name"),
    [
        ("POST /api2/json/nodes/pve/lxc", "POST /nodes/{node}/lxc"),
        ("DELETE /api2/json/nodes/pve/lxc/900001?force=1&purge=1", "DELETE /nodes/{node}/lxc/{vmid}"),
        ("GET /api2/json/nodes/pve/lxc/900001/config", "GET /nodes/{node}/lxc/{vmid}/config"),
        (
            "GET /api2/json/nodes/pve/tasks/UPID%3Apve%3A01%3A02%3A03%3Avzstop%3A900001%3Aa%40pve%21b%3A/status",
            "GET /nodes/{node}/tasks/{upid}/status",
        ),
    ],
)
def test_requests_of_one_kind_have_one_name(request_line: str, name: str) -> None:
    assert read_line(line(request_line)) == name


def test_only_the_daemons_requests_count() -> None:
    assert read_line(line("GET /api2/json/nodes/pve/tasks", agent="Python-urllib/3.11")) == ""


def test_task_polls_are_counted_separately() -> None:
    requests = Counter(
        {
            "POST /nodes/{node}/lxc": 2,
            "GET /nodes/{node}/lxc/{vmid}/config": 4,
            "GET /nodes/{node}/tasks/{upid}/status": 7,
        }
    )
    costs = average(Account(requests, Counter({"vzcreate": 2})), lives=2)
    assert (costs.changing, costs.reading, costs.waiting, costs.tasks) == (1, 2, 3.5, {"vzcreate": 1})
