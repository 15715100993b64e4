# SPDX-License-Identifier: Apache-2.0
"""Readiness of a network's plugins (CNI specification, section 2, STATUS), cached (decision 0060).

The kubelet calls Status every few seconds, and STATUS is a process a plugin. An expired result is refreshed in the
background of the call that finds it expired.
"""

from __future__ import annotations

import asyncio
from functools import partial

from pvecri.network.conflist import Network
from pvecri.network.errors import PluginError
from pvecri.network.plugins import PluginRunner
from pvecri.supervision import Supervisor

MAX_AGE = 10.0
"""Seconds for which a result is valid."""
FIRST_RESULT_TIMEOUT = 5.0
"""Seconds that a caller waits for the first result of a network."""


class ReadinessProbe:
    """The last STATUS of one network. A network whose version has no STATUS is ready."""

    def __init__(self, runner: PluginRunner, supervisor: Supervisor) -> None:
        self._runner = runner
        self._supervisor = supervisor
        self._network: Network | None = None
        self._started_at = 0.0
        self._problem: str | None = None
        self._task: asyncio.Task[None] | None = None

    async def problem(self, network: Network) -> str:
        """Why no pod can be attached to the network now; empty if one can."""
        if not network.has_version("1.1.0"):
            return ""
        now = asyncio.get_running_loop().time()
        if network != self._network:
            if self._task is not None:
                self._task.cancel()
            self._network, self._problem = network, None
            self._start(network, now)
        elif (self._task is None or self._task.done()) and now - self._started_at > MAX_AGE:
            self._start(network, now)
        if self._problem is None and self._task is not None:
            # Not wait_for, which would cancel it: the next caller gets its result.
            await asyncio.wait([self._task], timeout=FIRST_RESULT_TIMEOUT)
        return "its plugins have not answered STATUS yet" if self._problem is None else self._problem

    def _start(self, network: Network, now: float) -> None:
        self._started_at = now
        # Once: the next call of `problem` retries.
        self._task = self._supervisor.once("STATUS of the network", partial(self._refresh, network))

    async def _refresh(self, network: Network) -> None:
        problem = "STATUS of its plugins failed; the log has the error"  # a fault
        try:
            await self._runner.status(network)
            problem = ""
        except PluginError as error:
            problem = str(error)
        finally:
            if network is self._network:  # the configuration may have changed meanwhile
                self._problem = problem
