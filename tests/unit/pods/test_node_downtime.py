# SPDX-License-Identifier: Apache-2.0
"""The end of containers that ran when the node went down is not the time of the next daemon's start."""

from __future__ import annotations

import os
import time
from pathlib import Path

from pvecri.linux.processes import boot_time
from pvecri.pods.node_downtime import NodeDowntime

BOOTED = 1_800_000_000 * 10**9
BEFORE = BOOTED - 3600 * 10**9


async def last_run(directory: Path, at: int) -> Path:
    """The file of a daemon that ran until `at`."""
    file = directory / "last-run"
    await NodeDowntime(file).refresh()
    os.utime(file, ns=(at, at))
    return file


async def test_container_of_an_earlier_boot_ended_when_the_daemon_last_ran(tmp_path: Path) -> None:
    downtime = NodeDowntime(await last_run(tmp_path, BOOTED - 60), BOOTED)
    assert downtime.end_of(BEFORE) == BOOTED - 60


async def test_container_ended_at_the_boot_at_the_latest_if_no_daemon_kept_the_time(tmp_path: Path) -> None:
    assert NodeDowntime(tmp_path / "missing", BOOTED).end_of(BEFORE) == BOOTED
    assert NodeDowntime(await last_run(tmp_path, BOOTED + 60), BOOTED).end_of(BEFORE) == BOOTED


async def test_container_did_not_end_before_it_started(tmp_path: Path) -> None:
    downtime = NodeDowntime(await last_run(tmp_path, BEFORE), BOOTED)
    assert downtime.end_of(BEFORE + 1) == BEFORE + 1


async def test_container_of_this_boot_ended_now(tmp_path: Path) -> None:
    before = time.time_ns()
    downtime = NodeDowntime(await last_run(tmp_path, BOOTED - 60), BOOTED)
    assert before <= NodeDowntime(tmp_path / "missing").end_of(before) <= time.time_ns()
    assert downtime.end_of(BOOTED) >= before


def test_this_test_began_after_the_boot() -> None:
    assert 0 < boot_time() < time.time_ns()
