# SPDX-License-Identifier: AGPL-3.0-or-later
"""/cluster/ha/resources, and what the HA manager does with CTs: it keeps each in its requested state.

The manager works in rounds, so that the task of a request (`hastart`, `hastop`) ends before anything has happened.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

from fakepve import PveError, TaskError

from pvecri_embedded.api.base import Base, Ct, parameter_error
from pvecri_embedded.usercfg import ROOT

ROUND_S = 5.0
"""Seconds between two rounds; pve-ha-crm and pve-ha-lrm take five and more."""
_SID = re.compile(r"(?:ct:)?(\d+)")


class HaApi(Base):
    """HA with one node: CTs are started and stopped, none is moved. Resources are lost with the process."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._requested: dict[int, str] = {}
        """States that were requested since the last round, by VMID."""

    def _routes_ha(self) -> list[tuple[str, str, Any]]:
        path = "/cluster/ha/resources"
        return [
            ("GET", path, self._ha_list),
            ("POST", path, self._ha_add),
            ("DELETE", f"{path}/{{sid}}", self._ha_remove),
        ]

    async def _ha_list(self, v: dict[str, Any], user: str) -> list[dict[str, Any]]:
        self.require(user, "/", "Sys.Audit")
        managed = [ct for ct in self.cts if ct.ha_managed]
        return [{"sid": f"ct:{ct.vmid}", "type": "ct", "state": ct.ha_state} for ct in managed]

    async def _ha_add(self, v: dict[str, Any], user: str) -> None:
        self.require(user, "/", "Sys.Console")
        ct = self._ha_ct(v)
        if ct is None:
            raise PveError(500, f"Configuration file 'nodes/{self.node}/lxc/{v['sid']}.conf' does not exist")
        if ct.ha_managed:
            raise PveError(500, f"create resource failed: resource ID 'ct:{ct.vmid}' already defined")
        ct.ha_state = v.get("state") or "started"

    async def _ha_remove(self, v: dict[str, Any], user: str) -> None:
        self.require(user, "/", "Sys.Console")
        ct = self._ha_ct(v)
        if ct is None or not ct.ha_managed:
            raise PveError(500, f"cannot delete service '{v['sid']}', not HA managed!")
        ct.ha_state = None

    def _ha_ct(self, v: dict[str, Any]) -> Ct | None:
        found = _SID.fullmatch(v["sid"])
        if found is None:
            raise parameter_error("sid", "invalid format - the embedded node has HA for CTs only")
        ct: Ct | None = self.ct(int(found[1]))
        return ct

    # -- requests --------------------------------------------------------------------------------------------

    async def _lxc_start(self, user: str, v: dict[str, Any]) -> str:
        ct = self._here(v)
        if ct is None or not ct.ha_managed or ct.status == "running":
            return str(await super()._lxc_start(user, v))
        return await self._ha_request(ct, user, "started")

    async def _lxc_stop(self, user: str, v: dict[str, Any]) -> str:
        ct = self._here(v)
        if ct is None or not ct.ha_managed or ct.status != "running":
            return str(await super()._lxc_stop(user, v))
        self._skiplock(user, v)
        if v.get("overrule-shutdown"):
            raise parameter_error("overrule-shutdown", "Not applicable for HA resources.")
        return await self._ha_request(ct, user, "stopped")

    async def _lxc_shutdown(self, user: str, v: dict[str, Any]) -> str:
        ct = self._here(v)
        if ct is None or not ct.ha_managed or ct.status != "running":
            return str(await super()._lxc_shutdown(user, v))
        return await self._ha_request(ct, user, "stopped")

    async def _ha_request(self, ct: Ct, user: str, state: str) -> str:
        verb = "start" if state == "started" else "stop"

        async def body() -> None:
            self._requested[ct.vmid] = state

        log = [f"Requesting HA {verb} for CT {ct.vmid}"]
        return str(await self._ct_task(ct, f"ha{verb}", user, body, lock=False, log=log))

    # -- the manager -----------------------------------------------------------------------------------------

    async def run_ha_rounds(self) -> None:
        """Bring every managed CT into its requested state, again and again, until it is cancelled."""
        while True:
            for ct in [each for each in self.cts if each.ha_managed]:
                ct.ha_state = self._requested.pop(ct.vmid, ct.ha_state)
                await self._ha_settle(ct)
            await asyncio.sleep(ROUND_S)

    async def _ha_settle(self, ct: Ct) -> None:
        if ct.lock or (ct.ha_state == "started") == (ct.status == "running"):
            return

        async def start() -> None:
            await self._start_steps(ct, ROOT)

        try:
            # The manager is not the API: its own requests are not requested of HA again.
            if ct.ha_state == "started":
                await self._ct_task(ct, "vzstart", ROOT, start)
            else:
                await super()._lxc_stop(ROOT, {"node": ct.node, "vmid": ct.vmid})
        except (PveError, TaskError):
            return  # in the next round
