# SPDX-License-Identifier: Apache-2.0
"""Memory of daemons and of the processes that they keep for their pods."""

from __future__ import annotations

from dataclasses import dataclass

import psutil

from pvecri_bench.processes import called, with_descendants
from pvecri_bench.session import WORKLOAD, CommandLines

MIB = 1 << 20


@dataclass(frozen=True)
class Helpers:
    """What a runtime keeps besides its daemon and the containers' own processes. `pss` counts each page that is
    shared by n processes as a n-th of a page.
    """

    processes: int
    pss_mib: float


def resident_mib(pid: int) -> float:
    """A process's resident memory. Raises psutil.NoSuchProcess."""
    return int(psutil.Process(pid).memory_info().rss) / MIB


def helpers(wanted: CommandLines) -> Helpers:
    """The processes with such command lines, and what runs below them but the containers' own."""
    count, total = 0, 0
    for process in with_descendants(called(wanted)):
        try:
            if process.cmdline() == [*WORKLOAD]:
                continue
            total += int(process.memory_full_info().pss)
        except psutil.NoSuchProcess:
            continue
        count += 1
    return Helpers(count, total / MIB)
