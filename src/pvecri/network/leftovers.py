# SPDX-License-Identifier: Apache-2.0
"""CNI plugins that an earlier daemon has left running: they outlive a daemon that is killed."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Collection
from contextlib import suppress

from pvecri.linux import processes
from pvecri.linux.processes import Process

log = logging.getLogger(__name__)

CONTAINER_ID = "CNI_CONTAINERID"
"""The variable that tells a plugin, and what it runs, for whom it works (CNI specification, section 2)."""


async def settle(sandboxes: Collection[str], patience: float) -> None:
    """Return when no plugin works any more for these sandboxes; one that takes `patience` seconds is killed.

    A DEL that comes before the end of an ADD undoes nothing.
    """
    if not sandboxes:
        return
    running = await asyncio.to_thread(processes.with_variable, CONTAINER_ID)
    pids = [pid for pid, sandbox in running.items() if sandbox in sandboxes]
    await asyncio.gather(*(_ended(pid, patience) for pid in pids))


async def _ended(pid: int, patience: float) -> None:
    with suppress(ProcessLookupError):
        process = Process(pid)
        try:
            async with asyncio.timeout(patience):
                await process.wait()
        except TimeoutError:
            log.warning("a CNI plugin of an earlier daemon does not end: killing process %d", pid)
            process.send(signal.SIGKILL)
            await process.wait()
        finally:
            process.close()
