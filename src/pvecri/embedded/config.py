# SPDX-License-Identifier: AGPL-3.0-or-later
"""PUT /nodes/{node}/lxc/{vmid}/config: what changes is kept, and felt by a running CT at once."""

from __future__ import annotations

import asyncio
import os
import subprocess
from typing import Any

from fakepve import PveError

from .base import Base, Ct

_MEMORY = frozenset({"memory", "swap"})
_CPU = frozenset({"cpulimit", "cpuunits"})


class ConfigApi(Base):
    """Extends fakepve's rules for config changes with the file and the running CT."""

    async def _update_config(
        self, ct: Ct, user: str, values: dict[str, Any], deletes: list[str], reverts: list[str]
    ) -> None:
        before = dict(ct.config)
        await super()._update_config(ct, user, values, deletes, reverts)
        changed = {key for key in {*before, *ct.config} if before.get(key) != ct.config.get(key)}
        try:
            self._apply_limits(ct, changed)
        except OSError as error:
            ct.config = before
            raise PveError(500, f"unable to apply changes to CT {ct.vmid}: {error}") from error
        finally:
            self.save(ct)

    def _apply_limits(self, ct: Ct, changed: set[str]) -> None:
        """Write changed limits to the cgroup of a CT that runs."""
        if ct.monitor is None:
            return
        if changed & _MEMORY:
            self.cgroups.apply(ct.vmid, self.cgroups.memory_limits(ct.config))
        if changed & _CPU:
            self.cgroups.apply(ct.vmid, self.cgroups.cpu_limits(ct.config))
        if "cores" in changed:
            limit = self.cgroups.cpuset(int(ct.config.get("cores") or 0), ct.vmid)
            self.cgroups.apply(ct.vmid, [limit] if limit else [])
