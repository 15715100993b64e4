# SPDX-License-Identifier: Apache-2.0
"""The daemon's file descriptors and memory do not grow with the number of pods it has run."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support.cri_client import CriClient, eventually
from support.daemon import Machine

MIB_MAX = 90


def cycle(cri: CriClient) -> None:
    """The life of a pod, with all that holds something: a log, an exec, a kill."""
    pod = cri.run_pod()
    container = cri.run(pod, "sleep", "1000")
    assert cri.output(container, "echo", "hello") == "hello\n"
    cri.stop(container)
    cri.finish(pod, "true", attempt=1)
    cri.stop_pod(pod)
    cri.remove_pod(pod)


def held(pid: int) -> list[str]:
    """What the open file descriptors of a process are; numbers are cut off."""
    names = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            names.append(str(entry.readlink()).partition(":[")[0])
        except FileNotFoundError:
            continue
    return sorted(names)


def at_rest(pid: int) -> list[str] | None:
    """As `held`, when it stays so; connections to Proxmox come and go."""
    samples = []
    for _ in range(5):
        samples.append([name for name in held(pid) if name != "socket"])
        time.sleep(0.1)
    return samples[0] if all(sample == samples[0] for sample in samples) else None


def test_file_descriptors_and_memory_do_not_grow(machine: Machine, cri: CriClient) -> None:
    pid = machine.daemon.pid
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: cycle(cri), range(8)))
        machine.wait_for_removals()
        before = eventually(lambda: at_rest(pid), "the daemon has come to rest")
        list(threads.map(lambda _: cycle(cri), range(16)))
    eventually(lambda: at_rest(pid) == before, "all are closed again")
    status = Path(f"/proc/{pid}/status").read_text()
    resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
    assert resident // 1024 < MIB_MAX


def test_pod_is_unchanged_by_restarts_of_the_daemon(machine: Machine, cri: CriClient) -> None:
    pod = cri.run_pod()
    container = cri.run(pod, "sh", "-c", "n=0; while true; do n=$((n+1)); echo $n; usleep 1000; done")
    for _ in range(3):
        machine.restart()
    client = machine.client
    client.stop(container)
    numbers = [int(line.text) for line in client.logs(container)]
    assert numbers == list(range(1, len(numbers) + 1))
