# SPDX-License-Identifier: Apache-2.0
"""conmon of one of a pod's containers, looked for among those of all. Needs root."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import leaks, opened

from pvecri.config.settings import Config
from pvecri.linux import cgroups
from pvecri.model import Vmid
from pvecri.oci import features
from pvecri.oci.pod_cgroups import PodCgroups
from pvecri.oci.runtime import OciRuntime, PodNamespaces

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="processes are moved to cgroups")


class Monitors:
    """Processes with a child each, as conmon and a container's first process, all in one cgroup."""

    def __init__(self) -> None:
        self.group = f"/{leaks.PREFIX}monitors"
        self._trees = cgroups.detect()
        self._trees.make(self.group)
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self) -> tuple[int, int]:
        """The PIDs of one more monitor and of its child."""
        monitor = subprocess.Popen(["sh", "-c", "sleep 1000 & echo $!; wait"], stdout=subprocess.PIPE)
        self._started.append(monitor)
        assert monitor.stdout is not None
        child = int(monitor.stdout.readline())
        for pid in (monitor.pid, child):
            for directory in self._trees.directories(self.group):
                (directory / "cgroup.procs").write_text(str(pid))
        return monitor.pid, child

    def close(self) -> None:
        """End all of them."""
        self._trees.kill(self.group)
        for monitor in self._started:
            monitor.communicate()
        self._trees.remove(self.group)


@pytest.fixture
def monitors() -> Iterator[Monitors]:
    made = Monitors()
    yield made
    made.close()


async def test_containers_monitor_is_found_with_the_same_effort_among_many(
    monitors: Monitors, tmp_path: Path
) -> None:
    runtime = OciRuntime(await features.discover(Config()), tmp_path, tmp_path, tmp_path, create_timeout=1)
    nodes_pids, pid_file = PodNamespaces(pid=None, cgroups=PodCgroups(Vmid(1))), tmp_path / "pid"

    def files_opened() -> int:
        monitor, child = monitors.start()
        pid_file.write_text(f"{monitor}\n")
        with opened.recorded() as paths:
            assert runtime.monitor_pid(nodes_pids, monitors.group, pid_file, child) == monitor
        return len(paths)

    few = files_opened()
    for _ in range(10):
        monitors.start()
    assert files_opened() == few
