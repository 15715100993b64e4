# SPDX-License-Identifier: Apache-2.0
"""Counters of the network interfaces of other network namespaces."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pvecri.linux import namespaces
from pvecri.linux.processes import Process


@dataclass(frozen=True, slots=True)
class Traffic:
    """Counters of one direction; `errors` and `dropped` are packets."""

    bytes: int
    packets: int
    errors: int
    dropped: int


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface's counters since its creation."""

    name: str
    received: Traffic
    sent: Traffic


def of_process(process: Process) -> tuple[Interface, ...] | None:
    """The interfaces of a process's network namespace, without `lo`; None if it has ended.

    Without setns(2), for which the kernel waits up to a millisecond for each namespace.
    """
    try:
        fd = os.open(f"/proc/{process.pid}/net/dev", os.O_RDONLY | os.O_CLOEXEC)
        with os.fdopen(fd) as file:
            found = parse(file.read())
        alive = process.alive  # after the read: until now the PID was not another process's
    except OSError:  # EBADF: another thread has closed it
        return None
    return found if alive else None


def read(network_namespaces: Sequence[Path]) -> list[tuple[Interface, ...] | None]:
    """The interfaces of each namespace, by path, without `lo`; None for a namespace that is gone.

    One thread enters all of them in turn. Blocks: call it from a worker thread.
    """
    return namespaces.run_inside([], lambda: [_enter_and_read(path) for path in network_namespaces])


def _enter_and_read(namespace: Path) -> tuple[Interface, ...] | None:
    try:
        namespaces.setns(namespace)
    except OSError:
        return None
    # /proc/net is /proc/self/net: the network namespace of the main thread, not of this one.
    fd = os.open("/proc/thread-self/net/dev", os.O_RDONLY | os.O_CLOEXEC)
    with os.fdopen(fd) as file:
        return parse(file.read())


def parse(text: str) -> tuple[Interface, ...]:
    """/proc/net/dev (proc_pid_net(5)): two header lines, then per line eight counters received and eight sent."""
    found = []
    for line in text.splitlines()[2:]:
        name, _, numbers = line.rpartition(":")
        counts = [int(number) for number in numbers.split()]
        if name.strip() != "lo":
            found.append(Interface(name.strip(), Traffic(*counts[0:4]), Traffic(*counts[8:12])))
    return tuple(found)
