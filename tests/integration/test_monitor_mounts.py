# SPDX-License-Identifier: Apache-2.0
"""The mount namespaces of monitors do not grow with the pods of the node."""

from __future__ import annotations

import signal
from pathlib import Path

from support.cri_client import CriClient, eventually
from support.daemon import Machine

from pvecri.cri.proto import cri_pb2 as pb
from pvecri.linux import mounts, processes
from pvecri.linux.mounts import parse_mountinfo

LISTENS = "trap 'exit 7' TERM; echo begun; while true; do usleep 10000; done"


def mounted(pid: int, *directories: Path) -> set[Path]:
    """What a process's mount namespace has below directories."""
    lines = Path(f"/proc/{pid}/mountinfo").read_bytes().splitlines()
    found = {parse_mountinfo(line).mountpoint for line in lines}
    return {each for each in found if any(each.is_relative_to(directory) for directory in directories)}


def monitors(machine: Machine, container: str) -> list[int]:
    """conmon of a container that runs, and LXC's monitor of its CT."""
    conmon = processes.parent(machine.processes_of(container)[0])
    init = processes.parent(conmon)
    found = [conmon, processes.parent(init)]
    assert [processes.command_name(pid) for pid in found] == ["conmon", "lxc-start"]
    return found


def test_monitors_have_no_mounts_of_pods(machine: Machine, cri: CriClient) -> None:
    of_pods = (machine.run_dir / "pods", machine.run_dir / "containers", machine.state_dir / "images")
    container = cri.run(cri.run_pod(), "sh", "-c", LISTENS)
    found = monitors(machine, container)
    eventually(lambda: not any(mounted(pid, *of_pods) for pid in found), "they have none of their pod")
    other = cri.run_pod()
    cri.run(other, "sleep", "1000")
    assert not any(mounted(pid, *of_pods) for pid in found)
    assert mounted(machine.daemon.pid, *of_pods) >= {*of_pods[:2], of_pods[0] / other / "files"}


def test_conmon_without_the_mounts_of_pods_does_its_work(machine: Machine, cri: CriClient) -> None:
    pod = cri.run_pod()
    container = cri.run(pod, "sh", "-c", LISTENS)
    (conmon, _) = monitors(machine, container)
    eventually(lambda: not mounted(conmon, machine.run_dir / "containers"), "they are unmounted")
    log = Path(cri.status(container).log_path)
    log.rename(log.with_suffix(".1"))
    cri.runtime.ReopenContainerLog(pb.ReopenContainerLogRequest(container_id=container))
    machine.stop(signal.SIGTERM)
    machine.start()
    cri = machine.client
    assert log.exists()
    cri.stop(container, timeout=100)
    assert cri.status(container).exit_code == 7


def test_mounts_of_the_node_appear_and_disappear_for_conmon(
    machine: Machine, cri: CriClient, tmp_path: Path
) -> None:
    mounts.ensure_shared(tmp_path)
    late = tmp_path / "late"
    late.mkdir()
    try:
        container = cri.run(cri.run_pod(), "sleep", "1000")
        (conmon, _) = monitors(machine, container)
        eventually(lambda: not mounted(conmon, machine.run_dir / "containers"), "the pods' are unmounted")
        mounts.mount("late", late, "tmpfs")
        assert mounted(conmon, late)
        mounts.umount(late, detach=True)
        assert not mounted(conmon, late)
    finally:
        mounts.umount_below(tmp_path)
