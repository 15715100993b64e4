# SPDX-License-Identifier: Apache-2.0
"""CTs that this installation created and has no record of, found among the guests of the cluster."""

from __future__ import annotations

from pathlib import Path

from support.scripted_pve import data, refusal, scripted_pve

from pvecri.config import Config
from pvecri.linux.cgroups import Cgroups
from pvecri.pods.registry import Registry
from pvecri.pods.sandbox.ct import SandboxCts
from pvecri.pods.store import Store
from pvecri.proxmox.api import ProxmoxApi

GONE, HIDDEN, OURS, FOREIGN = range(900_000, 900_004)


async def test_cts_that_vanish_or_leave_the_pool_while_they_are_read_are_no_orphans(tmp_path: Path) -> None:
    async with scripted_pve() as server:
        guests = [{"vmid": vmid, "node": "pve", "type": "lxc"} for vmid in (GONE, HIDDEN, OURS, FOREIGN)]
        # Listed once more to explain each 403, and without the CT that has left the pool.
        server.script("GET", "/cluster/resources", data(guests), data(guests[2:]))
        taken = refusal(400, "Parameter verification failed.", {"vmid": f"VM {HIDDEN} already exists"})
        server.script("GET", "/cluster/nextid", taken)
        server.script("GET", "/access/permissions", data({"/vms": {"VM.Audit": 1}}))
        no_config = f"Configuration file 'nodes/pve/lxc/{GONE}.conf' does not exist"
        server.script("GET", f"/nodes/pve/lxc/{GONE}/config", refusal(500, no_config))
        forbidden = refusal(403, f"Permission check failed (/vms/{HIDDEN}, VM.Audit)")
        server.script("GET", f"/nodes/pve/lxc/{HIDDEN}/config", forbidden)
        notes = {"description": f"sandbox: {'a' * 64}\n\ninstallation: here\n"}
        server.script("GET", f"/nodes/pve/lxc/{OURS}/config", data(notes))
        server.script("GET", f"/nodes/pve/lxc/{FOREIGN}/config", data({"description": "a database"}))
        config = Config(proxmox=server.config(tmp_path))
        api = ProxmoxApi(config.proxmox)
        await api.start()
        store = Store(tmp_path / "pods.db")
        try:
            cts = SandboxCts(config, api, Registry(store, tmp_path), Cgroups(v2=None, v1={}), "here")
            assert [vmid async for vmid in cts.orphans()] == [OURS]
        finally:
            store.close()
            await api.close()
