# SPDX-License-Identifier: Apache-2.0
"""`pvecri repair`: lists the CTs that look like pods' and are none, and destroys one for a person who decides so.

Nothing else of pvecri destroys a CT that its store does not have (decision 0078).
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator, Set
from contextlib import asynccontextmanager

from pvecri.config.settings import Config
from pvecri.errors import FailedPrecondition
from pvecri.linux import cgroups, single_instance
from pvecri.model import Vmid
from pvecri.pods import foreign_cts
from pvecri.pods.foreign_cts import ForeignCt
from pvecri.pods.sandbox import left_cgroups
from pvecri.pods.store import Recorded, claim_name, recorded
from pvecri.proxmox.api import ProxmoxApi


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `repair` to the parser of `pvecri`."""
    repair = commands.add_parser(
        "repair",
        help="list the CTs of this node that look like pods' and are none of this installation's, or destroy one",
    )
    repair.add_argument(
        "--destroy",
        type=int,
        metavar="VMID",
        help="destroy this one, with its disks, and without a question. It must be stopped, and no pod's",
    )


def run(config: Config, options: argparse.Namespace) -> int:
    """Run the command; returns the exit status. Errors are raised."""
    if options.destroy is not None:
        asyncio.run(destroy(config, Vmid(options.destroy)))
        return 0
    for foreign in asyncio.run(find(config)):
        print(foreign)
    return 0


async def find(config: Config) -> list[ForeignCt]:
    """The foreign CTs of this node, by the store below runtime.state_dir, whether a daemon runs or not."""

    def known() -> Set[int]:  # read again for each CT: pods come and go meanwhile
        return _recorded(config).pods.keys()

    async with _opened(config) as proxmox:
        return await foreign_cts.find(proxmox, config.proxmox.node_name, known, _recorded(config).installation)


async def destroy(config: Config, vmid: Vmid) -> None:
    """Print what the CT is and destroy it.

    CtNotFound; FailedPrecondition for a pod's CT, also if the pod is removed, for one whose notes name no pod, and
    for one of another installation whose daemon runs on this node. ProxmoxError if it runs, is locked or
    protected.
    """
    async with _opened(config) as proxmox:
        seen = await proxmox.ct_config(vmid)
        print(await _checked(config, proxmox, vmid), flush=True)

        async def confirm() -> None:
            await _checked(config, proxmox, vmid)
            # What was printed is what the person agreed to.
            if (await proxmox.ct_config(vmid)).raw != seen.raw:
                raise FailedPrecondition(f"CT {vmid} was changed meanwhile: nothing was done")

        # A running one is refused by Proxmox: what runs in it may be in use.
        await proxmox.destroy_ct(vmid, confirm, force=False)
        left_cgroups.remove(cgroups.detect(), vmid)
        print(f"CT {vmid}: destroyed")


async def _checked(config: Config, proxmox: ProxmoxApi, vmid: Vmid) -> ForeignCt:
    store = _recorded(config)
    if vmid in store.removed:
        raise FailedPrecondition(
            f"CT {vmid} is that of the removed pod {store.pods[vmid]}: the daemon destroys it, and "
            "`pvecri status` has the reason why it has not yet"
        )
    if pod := store.pods.get(vmid):
        raise FailedPrecondition(
            f"CT {vmid} is that of pod {pod} in {config.runtime.state_dir}: remove the pod instead (crictl rmp)"
        )
    foreign = foreign_cts.foreign_ct(vmid, await proxmox.ct_config(vmid), store.installation)
    if foreign is None:
        raise FailedPrecondition(f"the notes of CT {vmid} name no pod, so it is none of pvecri's: pct destroy")
    if foreign.installation != store.installation and single_instance.claimed(claim_name(foreign.installation)):
        raise FailedPrecondition(
            f"CT {vmid} is of installation {foreign.installation}, whose daemon runs on this node: use the "
            "configuration of that daemon"
        )
    return foreign


def _recorded(config: Config) -> Recorded:
    return recorded(config.runtime.state_dir / "pods.db")


@asynccontextmanager
async def _opened(config: Config) -> AsyncIterator[ProxmoxApi]:
    proxmox = ProxmoxApi(config.proxmox)
    await proxmox.start()
    try:
        yield proxmox
    finally:
        await proxmox.close()
