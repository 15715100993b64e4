# SPDX-License-Identifier: Apache-2.0
"""Whether a network's plugins are ready (CNI specification, section 2, STATUS), asked seldom.

Clients ask for the runtime's status every few seconds, and each STATUS is a process a plugin. So an answer holds
for a while, and is renewed beside the call that finds it old.
"""

from __future__ import annotations

import asyncio
from functools import partial

from pvecri.network.conflist import Network
from pvecri.network.errors import PluginError
from pvecri.network.plugins import PluginRunner
from pvecri.supervision import Supervisor

RENEW_AFTER = 10.0
"""Seconds that an answer holds."""
FIRST_ANSWER = 5.0
"""Seconds that a caller waits when nothing is known yet of a network."""


class ReadinessProbe:
    """What the plugins of one network said last. Networks without STATUS are ready, and none of it is run."""

    def __init__(self, runner: PluginRunner, supervisor: Supervisor) -> None:
        self._runner = runner
        self._supervisor = supervisor
        self._network: Network | None = None
        self._asked_at = 0.0
        self._problem: str | None = None
        self._task: asyncio.Task[None] | None = None

    async def problem(self, network: Network) -> str:
        """Why no pod can be attached to the network now; empty when one can."""
        if not network.has_version("1.1.0"):
            return ""
        now = asyncio.get_running_loop().time()
        if network != self._network:
            if self._task is not None:
                self._task.cancel()
            self._network, self._problem = network, None
            self._ask(network, now)
        elif (self._task is None or self._task.done()) and now - self._asked_at > RENEW_AFTER:
            self._ask(network, now)
        if self._problem is None and self._task is not None:
            await asyncio.wait([self._task], timeout=FIRST_ANSWER)
        return "its plugins have not answered STATUS yet" if self._problem is None else self._problem

    def _ask(self, network: Network, now: float) -> None:
        self._asked_at = now
        # Once: the next request for the status brings about the next try.
        self._task = self._supervisor.once("STATUS of the network", partial(self._renew, network))

    async def _renew(self, network: Network) -> None:
        problem = "its plugins could not be asked for their STATUS; the log says why"  # a fault
        try:
            await self._runner.status(network)
            problem = ""
        except PluginError as error:
            problem = str(error)
        finally:
            if network is self._network:  # it may have been changed meanwhile
                self._problem = problem
