# SPDX-License-Identifier: Apache-2.0
"""The end of a CT by its init, with processes that stand for LXC's monitor and the init."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvecri.linux import processes
from pvecri.linux.cgroups import Cgroups
from pvecri.linux.processes import Process
from pvecri.model import Sandbox, SandboxConfig, SandboxId, SandboxMetadata, SandboxPhase, Vmid
from pvecri.pods.registry import PodEntry
from pvecri.pods.sandbox import ct_kill

MONITOR = "#!/bin/sh\nsleep 1000 &\nwait\nread line\n"
"""Ends with the line that it reads once its child has ended."""

NO_CGROUPS = Cgroups(v2=None, v1={})


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    script = tmp_path / ct_kill.MONITOR_NAME  # /proc/PID/comm of a script is its file's name
    script.write_text(MONITOR)
    script.chmod(0o755)
    process = subprocess.Popen([script], stdin=subprocess.PIPE)
    yield process
    for each in (process.pid, *processes.descendants(process.pid)):
        processes.kill_tree(each)
    process.communicate()


@pytest.fixture
async def pod(monitor: subprocess.Popen[bytes], tmp_path: Path) -> PodEntry:
    while not (children := processes.children(monitor.pid)):
        await asyncio.sleep(0.001)
    config = SandboxConfig(metadata=SandboxMetadata(name="web", namespace="shop", uid="a1"))
    sandbox = Sandbox(
        id=SandboxId("1" * 64), config=config, created_at=1, phase=SandboxPhase.READY, vmid=Vmid(900_000)
    )
    return PodEntry(sandbox, tmp_path, init=Process(children[0]))


async def test_init_is_killed_and_its_end_is_waited_for(pod: PodEntry) -> None:
    assert pod.init is not None
    pid = pod.init.pid
    await ct_kill.kill(pod, NO_CGROUPS)
    assert pod.init is None
    assert processes.status(pid).get("State", "Z").startswith("Z")
    await ct_kill.kill(pod, NO_CGROUPS)


async def test_end_of_the_monitor_is_waited_for(pod: PodEntry, monitor: subprocess.Popen[bytes]) -> None:
    await ct_kill.kill(pod, NO_CGROUPS)
    waiting = asyncio.create_task(ct_kill.wait_for_monitor(pod))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert monitor.stdin is not None
    os.write(monitor.stdin.fileno(), b"\n")
    await waiting
    assert pod.monitor is None
    await ct_kill.wait_for_monitor(pod)


async def test_parent_that_is_no_monitor_is_not_waited_for(tmp_path: Path, pod: PodEntry) -> None:
    child = await asyncio.create_subprocess_exec("sleep", "1000")
    pod.init = Process(child.pid)
    killed = asyncio.create_task(ct_kill.kill(pod, NO_CGROUPS))
    await child.wait()
    await killed
    assert pod.monitor is None
