# SPDX-License-Identifier: Apache-2.0
"""CNI plugins of the previous daemon process: they keep running if the daemon is killed."""

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
"""Set in the environment of a plugin, and inherited by its children (CNI specification, section 2)."""


async def wait_for_exit(sandboxes: Collection[str], timeout: float) -> None:
    """Wait until no plugin runs for these sandboxes; kill those that still run after `timeout` seconds.

    A DEL must not overtake an ADD: what the ADD creates afterwards would never be freed.
    """
    if not sandboxes:
        return
    # Of all processes: the plugin's children have the variable too, and may be what still works.
    running = await asyncio.to_thread(processes.with_variable, CONTAINER_ID)
    pids = [pid for pid, sandbox in running.items() if sandbox in sandboxes]
    await asyncio.gather(*(_wait_for_process(pid, timeout) for pid in pids))


async def _wait_for_process(pid: int, timeout: float) -> None:
    with suppress(ProcessLookupError):
        process = Process(pid)
        try:
            async with asyncio.timeout(timeout):
                await process.wait()
        except TimeoutError:
            log.warning("a CNI plugin of the previous daemon process does not exit: killing process %d", pid)
            process.send(signal.SIGKILL)
            await process.wait()
        finally:
            process.close()
