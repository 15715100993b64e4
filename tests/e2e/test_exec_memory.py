# SPDX-License-Identifier: Apache-2.0
"""Large outputs of many commands at once do not fill the node's memory, and what they take is given back."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support.cri_client import CriClient, eventually
from support.daemon import Machine

from pvecri.oci.spool import OUTPUT_LIMIT

COMMANDS = 24
MIB = 1 << 20
PEAK = 350
"""MiB above the start: the largest outputs that are sent at once, as bytes, message and frames of gRPC."""
KEPT = 40
"""MiB above the start, a moment after the last one."""


def memory(pid: int, what: str) -> int:
    """A figure of /proc/PID/status in MiB: VmRSS now, VmHWM at its highest."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:")) // 1024


def test_memory_of_many_large_outputs_is_bounded_and_given_back(
    machine: Machine, cri: CriClient, container: str
) -> None:
    pid = machine.daemon.pid
    cri.output(container, "true")
    before = memory(pid, "VmRSS")
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # resets VmHWM
    with ThreadPoolExecutor(COMMANDS) as threads:
        calls = [
            threads.submit(cri.exec, container, "dd", "if=/dev/zero", "bs=1M", "count=120")
            for _ in range(COMMANDS)
        ]
        assert {len(call.result().stdout) for call in calls} == {OUTPUT_LIMIT}
    assert memory(pid, "VmHWM") < before + PEAK
    eventually(lambda: memory(pid, "VmRSS") < before + KEPT, "the memory is given back")


def test_output_of_a_command_leaves_no_file(machine: Machine, cri: CriClient, container: str) -> None:
    state = machine.directory / "state"
    before = sorted(state.iterdir())
    assert len(cri.exec(container, "dd", "if=/dev/zero", "bs=1M", "count=3").stdout) == 3 * MIB
    assert sorted(state.iterdir()) == before
