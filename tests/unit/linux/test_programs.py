# SPDX-License-Identifier: Apache-2.0
"""Programs that fail, hang, flood their output or leave children behind."""

from __future__ import annotations

import asyncio
import resource
from pathlib import Path

import pytest

from pvecri.errors import CommandError, DeadlineExceeded
from pvecri.linux import programs
from pvecri.linux.processes import command_line
from pvecri.linux.programs import Ended


def shell(script: str) -> list[str]:
    return ["sh", "-c", script]


def running(marker: str) -> list[int]:
    """The processes that have `marker` as an argument."""
    pids = (int(path.name) for path in Path("/proc").glob("[0-9]*"))
    return [pid for pid in pids if marker in command_line(pid)]


async def none_runs(marker: str) -> None:
    """Wait until no process has `marker`: one that was killed is there until the kernel has ended it."""
    async with asyncio.timeout(30):
        while running(marker):
            await asyncio.sleep(0.01)


async def test_output_status_and_input_are_passed_on() -> None:
    ended = await programs.run(shell("cat; echo problem >&2; exit 3"), timeout=30, stdin=b"text")
    assert ended == Ended("sh", 3, b"text", "problem\n")


async def test_stdin_is_empty_by_default() -> None:
    assert (await programs.run(["cat"], timeout=30)).stdout == b""


async def test_failure_raises_stderr() -> None:
    ended = await programs.run(shell("echo noise; echo the reason >&2; exit 1"), timeout=30, name="mkfs")
    with pytest.raises(CommandError, match=r"^mkfs ended with status 1: the reason$"):
        ended.checked()


async def test_failure_without_stderr_raises_stdout() -> None:
    with pytest.raises(CommandError, match=r"^sh ended with signal 9: the reason$"):
        (await programs.run(shell("echo the reason; kill -9 $$"), timeout=30)).checked()


async def test_program_that_is_not_installed_raises_file_not_found() -> None:
    with pytest.raises(FileNotFoundError):
        await programs.run(["/nonexistent/program"], timeout=30)


async def test_timeout_kills_the_program_and_raises_its_stderr() -> None:
    with pytest.raises(DeadlineExceeded, match=r"^sh was killed after 0.3 s: waiting$"):
        await programs.run(shell("echo waiting >&2; sleep 8641.1"), timeout=0.3)
    await none_runs("8641.1")


@pytest.mark.parametrize(
    "script",
    [
        pytest.param("sleep 8642.2 & wait", id="child"),
        pytest.param("setsid sleep 8642.2 & wait", id="child-in-own-session"),
        pytest.param("setsid sleep 8642.2 & exit 0", id="orphan-in-own-session-with-stdout"),
        pytest.param("setsid sh -c 'sleep 8642.2' >&- & exit 0", id="orphan-in-own-session-with-stderr"),
        pytest.param("sleep 8642.2 >&- 2>&- & sleep 60", id="child-without-output"),
    ],
)
async def test_timeout_kills_what_the_program_started(script: str) -> None:
    with pytest.raises(DeadlineExceeded):
        await programs.run(shell(script), timeout=0.5)
    await none_runs("8642.2")


async def test_background_process_that_closed_its_output_outlives_a_program_that_succeeded() -> None:
    ended = await programs.run(shell("setsid sleep 8643.3 >/dev/null 2>&1 & echo $!"), timeout=30)
    try:
        assert ended.returncode == 0
        assert running("8643.3") != []
    finally:
        await programs.run(["kill", *map(str, running("8643.3"))], timeout=30)


async def test_worker_thread_runs_programs_in_the_same_way() -> None:
    ended = await asyncio.to_thread(programs.run_blocking, shell("echo out; exit 3"), timeout=30)
    assert ended == Ended("sh", 3, b"out\n", "")
    with pytest.raises(DeadlineExceeded):
        await asyncio.to_thread(programs.run_blocking, shell("setsid sleep 8646.6 & exit 0"), timeout=0.5)
    assert running("8646.6") == []


async def test_too_much_output_ends_the_program_and_takes_no_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CommandError, match="more than 1048576 bytes"):
        await programs.run(shell("setsid sleep 8644.4 & head -c 3G /dev/zero"), timeout=60, stdout_limit=1 << 20)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
    assert running("8644.4") == []


async def test_of_much_stderr_the_end_is_kept() -> None:
    ended = await programs.run(shell("head -c 100M /dev/zero | tr '\\0' x >&2; echo the end >&2"), timeout=60)
    assert ended.stderr.endswith("xthe end\n")
    assert len(ended.stderr) == programs.STDERR_LIMIT


async def test_cancellation_kills_the_program_and_what_it_started(tmp_path: Path) -> None:
    started = tmp_path / "started"
    task = asyncio.create_task(programs.run(shell(f"setsid sleep 8645.5 & touch {started}; exit 0"), timeout=60))
    while not started.exists():
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert running("8645.5") == []
