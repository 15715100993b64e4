# SPDX-License-Identifier: Apache-2.0
"""CTs with notes of pods that this installation has no record of, while they vanish from the cluster's guests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from support.scripted_pve import data, refusal, scripted_pve

from pvecri.config.settings import Config
from pvecri.pods.foreign_cts import find
from pvecri.proxmox.answers import Guest
from pvecri.proxmox.api import ProxmoxApi

GONE, HIDDEN, OURS, FOREIGN = range(900_000, 900_004)


async def test_cts_that_vanish_or_leave_the_pool_while_they_are_read_are_left_out(tmp_path: Path) -> None:
    listed: list[Sequence[Guest]] = []
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
        try:
            found = await find(api, "pve", set, "here", listed.append)
        finally:
            await api.close()
    assert [each.vmid for each in found] == [OURS]
    assert [[guest.vmid for guest in guests] for guests in listed] == [[GONE, HIDDEN, OURS, FOREIGN]]
