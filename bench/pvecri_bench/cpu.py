# SPDX-License-Identifier: Apache-2.0
"""CPU time of a process, which other load on the machine changes less than the time that passes."""

from __future__ import annotations

import os
from pathlib import Path


def own_ms(pid: int) -> float:
    """The CPU time of its threads that run, in milliseconds (schedstat: nanoseconds on the CPU)."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except OSError:  # the thread has ended; its time is missing, which is little
            continue
    return total / 1e6


def children_ms(pid: int) -> float:
    """The CPU time of its children that have ended and been waited for, in milliseconds, in steps of a tick."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) * 1000 / os.sysconf("SC_CLK_TCK")
