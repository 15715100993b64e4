# SPDX-License-Identifier: Apache-2.0
"""The time of a call is divided among what the daemon did in it."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
import time

import pytest
from pvecri_bench import profile, spans
from pvecri_bench.profile import GRPC, OWN, shares


def test_the_span_that_began_last_counts() -> None:
    recorded = [("call", 10, 90), ("Proxmox", 20, 60), ("SQLite", 30, 40), ("earlier", 0, 5), ("across", 80, 200)]
    assert shares(recorded, 0, 100) == {
        "earlier": 5, GRPC: 5, OWN: 10 + 20, "Proxmox": 30, "SQLite": 10, "across": 20
    }  # fmt: skip


def test_all_shares_are_the_whole_time() -> None:
    recorded = [("call", 1, 9), ("a", 2, 5), ("b", 3, 8), ("a", 4, 6)]
    assert sum(shares(recorded, 0, 10).values()) == 10
    assert shares([], 3, 10) == {GRPC: 7}


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (["nsenter", "--pid=/x", "/usr/bin/conmon", "-r", "/usr/sbin/runc"], "conmon: runc create"),
        (["nsenter", "--pid=/x", "/usr/sbin/runc", "--root", "/r", "exec", "id", "true"], "runc exec"),
        (["crun", "--root", "/r", "delete", "--force", "start"], "crun delete"),
        (["/opt/cni/bin/bridge"], "bridge"),
    ],
)
def test_a_program_is_named_by_what_it_does(command: list[str], kind: str) -> None:
    assert spans.program(command) == kind


def test_work_is_recorded_with_its_begin_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    recorder = spans.Recorder(file)
    monkeypatch.setattr(subprocess.Popen, "__init__", subprocess.Popen.__init__)
    spans.record_programs(recorder)

    class Worker:
        async def wait(self) -> str:
            await asyncio.sleep(0)
            return "waited"

        def work(self) -> str:
            return "worked"

    recorder.wrap_all(Worker, lambda name: f"its {name}", lambda name: name == "wait")
    recorder.wrap(Worker, "work", "work")
    assert (asyncio.run(Worker().wait()), Worker().work()) == ("waited", "worked")
    begin = time.monotonic_ns()
    subprocess.run([sys.executable, "-c", ""], check=True, env={"CNI_COMMAND": "ADD"})
    name = sys.executable.rpartition("/")[2]
    while f"CNI ADD: {name}" not in file.getvalue():
        time.sleep(0.01)
    found = {kind: (first, last) for kind, first, last in map(json.loads, file.getvalue().splitlines())}
    assert found.keys() == {"its wait", "work", spans.FORK, f"CNI ADD: {name}"}
    assert begin <= found[spans.FORK][0] <= found[spans.FORK][1] <= found[f"CNI ADD: {name}"][1]


def test_a_table_has_mean_and_share_of_each_kind() -> None:
    rounds = [{OWN: 2_000_000, "runc start": 6_000_000}, {OWN: 4_000_000, "runc start": 8_000_000}]
    assert profile._table("StartContainer", rounds).splitlines() == [
        "| StartContainer, 10 ms | ms | share |",
        "|---|--:|--:|",
        "| runc start | 7.0 | 70 % |",
        f"| {OWN} | 3.0 | 30 % |",
    ]
