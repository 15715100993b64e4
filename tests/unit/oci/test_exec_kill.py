# SPDX-License-Identifier: Apache-2.0
"""A killed command's process is reaped by asyncio's child watcher alone, which has its exit code."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Iterator

import pytest

from pvecri.linux.cgroups import Cgroups
from pvecri.oci.kill import kill_command

pytestmark = pytest.mark.usefixtures("_watcher_of_the_daemon")
NO_CGROUPS = Cgroups(v2=None, v1={})


@pytest.fixture
def _watcher_of_the_daemon() -> Iterator[None]:
    """As daemon.run sets it: children are reaped in the event loop."""
    if sys.version_info >= (3, 12):
        yield
        return
    before = asyncio.get_child_watcher()
    asyncio.set_child_watcher(asyncio.PidfdChildWatcher())
    yield
    asyncio.set_child_watcher(before)


async def test_exit_code_of_a_process_that_has_just_exited_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    reading, writing = os.pipe()
    process = await asyncio.create_subprocess_exec("sh", "-c", "read line; exit 7", stdin=reading)
    os.close(reading)
    os.close(writing)
    # It has exited, and the event loop has not noticed.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222
    with caplog.at_level(logging.WARNING):
        await kill_command(process, NO_CGROUPS, "/none")
    assert (process.returncode, caplog.messages) == (7, [])


async def test_process_that_runs_is_killed(caplog: pytest.LogCaptureFixture) -> None:
    process = await asyncio.create_subprocess_exec("sleep", "1000")
    with caplog.at_level(logging.WARNING):
        await kill_command(process, NO_CGROUPS, "/none")
    assert (process.returncode, caplog.messages) == (-signal.SIGKILL, [])
