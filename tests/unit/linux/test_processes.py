# SPDX-License-Identifier: Apache-2.0
"""Processes by pidfd, and the parsers of /proc/PID."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvecri.linux import processes
from pvecri.linux.processes import Process

Child = subprocess.Popen[bytes]


def started(program: str | Path) -> Child:
    """A program like cat, when it has answered: it is itself by then, and not a copy of us any more."""
    process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"there?\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"there?\n"
    return process


@pytest.fixture
def child() -> Iterator[Child]:
    """A process of ours that waits until it is ended."""
    with started("cat") as process:
        yield process
        process.kill()


@pytest.fixture
def process(child: Child) -> Iterator[Process]:
    process = Process(child.pid)
    yield process
    process.close()


@pytest.fixture
def gone(child: Child) -> int:
    """The number of a process that has ended and was reaped."""
    child.kill()
    child.wait()
    return child.pid


# -- holding -------------------------------------------------------------------------------------------------


def test_opening_a_missing_process_fails(gone: int) -> None:
    with pytest.raises(ProcessLookupError):
        Process(gone)


def test_running_process_is_alive_and_gets_signals(process: Process, child: Child) -> None:
    assert process.alive
    assert process.send(signal.SIGTERM)
    assert child.wait() == -signal.SIGTERM


def test_zombie_is_not_alive(process: Process, child: Child) -> None:
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert processes.status(child.pid)["State"].startswith("Z")
    assert not process.alive


def test_send_to_an_ended_process_returns_false(process: Process, child: Child) -> None:
    child.kill()
    child.wait()
    assert not process.alive
    assert not process.send(signal.SIGKILL)


async def test_every_waiter_is_woken(process: Process, child: Child) -> None:
    waiting = [asyncio.create_task(process.wait()) for _ in range(3)]
    child.kill()
    await asyncio.gather(*waiting)
    await process.wait()


async def test_cancelled_wait_leaves_other_waiters(process: Process, child: Child) -> None:
    waiting = asyncio.create_task(process.wait())
    cancelled = asyncio.create_task(process.wait())
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    child.kill()
    await waiting


async def test_close_cancels_waiters_and_keeps_the_process(process: Process, child: Child) -> None:
    waiting = asyncio.create_task(process.wait())
    await asyncio.sleep(0)
    for _ in range(2):
        process.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert child.poll() is None
    assert not process.alive


# -- /proc ---------------------------------------------------------------------------------------------------


def test_status_is_parsed(child: Child) -> None:
    status = processes.status(child.pid)
    assert (status["Name"], status["PPid"]) == ("cat", str(os.getpid()))
    assert status["Uid"].split()[0] == str(os.getuid())


def test_command_name_is_truncated_to_15_bytes(child: Child, tmp_path: Path) -> None:
    assert processes.command_name(child.pid) == "cat"
    program = tmp_path / "a program) with 20 S"
    program.symlink_to("/bin/cat")
    with started(program) as odd:
        assert processes.command_name(odd.pid) == "a program) with"
        process = Process(odd.pid)
        assert process.alive
        process.close()


def test_innermost_pid() -> None:
    assert processes.innermost_pid(os.getpid()) == os.getpid()


def test_ended_process_has_no_proc_entries(gone: int) -> None:
    assert processes.status(gone) == {}
    assert processes.command_name(gone) == ""
    assert processes.innermost_pid(gone) == 0
    assert processes.stop_tree(gone) == []


def test_stop_tree_stops_all_descendants() -> None:
    script = "sleep 1000 & (sleep 1001 & echo ready; wait) & wait"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE) as shell:
        assert shell.stdout is not None
        assert shell.stdout.readline() == b"ready\n"
        stopped = processes.stop_tree(shell.pid)
        try:
            assert stopped[0] == shell.pid
            assert len(stopped) == 4
            assert os.waitid(os.P_PID, shell.pid, os.WSTOPPED)
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGKILL)


def test_descendants_at_every_depth() -> None:
    script = "sleep 1000 & (sleep 1001 & echo ready; wait) & wait"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE) as shell:
        assert shell.stdout is not None
        assert shell.stdout.readline() == b"ready\n"
        found = processes.descendants(shell.pid)
        try:
            assert len(found) == 3
            assert found[:1] == processes.children(shell.pid)[:1]
        finally:
            for pid in (*found, shell.pid):
                os.kill(pid, signal.SIGKILL)


def test_command_line_and_environment_are_read(gone: int) -> None:
    name, value = "PVECRI_TEST_VARIABLE", "a=b c"
    command = ["sh", "-c", "echo ready; read line", "two words"]
    environment = {**os.environ, name: value}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, **pipes) as shell:  # type: ignore[call-overload]
        shell.stdout.readline()
        assert processes.command_line(shell.pid) == command
        assert processes.with_variable(name) == {shell.pid: value}
        shell.stdin.close()
    assert processes.command_line(gone) == []


def test_oom_scores_are_set_as_far_as_we_may(gone: int) -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        score = Path(f"/proc/{process.pid}/oom_score_adj")
        before = int(score.read_text())
        try:
            processes.set_oom_score_adj(process.pid, before + 1)
            assert int(score.read_text()) == before + 1
            processes.set_oom_score_adj(process.pid, -998)
            assert int(score.read_text()) in (-998, before + 1)  # only with CAP_SYS_RESOURCE can it go down
        finally:
            process.kill()
    processes.set_oom_score_adj(gone, -998)
