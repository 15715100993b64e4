# SPDX-License-Identifier: Apache-2.0
"""Proxmox: account, privileges, storages; then the pods' database against Proxmox and the kernel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Set

from pvecri.checks import tags, versions
from pvecri.checks.finding import Finding
from pvecri.config.settings import Config, ConfigError
from pvecri.errors import PvecriError
from pvecri.images import placement
from pvecri.linux import cgroups
from pvecri.pods import foreign_cts
from pvecri.pods.health import Condition, ProxmoxHealth, image_store_condition
from pvecri.pods.store import Recorded, recorded
from pvecri.proxmox.api import ProxmoxApi

SUBJECT = "proxmox"
STORE = "store"

SETTLED = 5.0
"""Seconds after which what seemed to be lost or left is looked at again: pods come and go meanwhile."""


async def check(config: Config) -> AsyncIterator[Finding]:
    """Ask Proxmox, which has to answer for the rest."""
    proxmox = ProxmoxApi(config.proxmox, image_storage=config.images.template_storage)
    try:
        await proxmox.start()
    except ConfigError as error:
        yield Finding("problem", SUBJECT, str(error))
        return
    try:
        health = ProxmoxHealth(config.proxmox, proxmox)
        await health.poll()
        if not health.condition.met:
            yield Finding("problem", SUBJECT, _message(health.condition), "docs/proxmox-setup.md")
            return
        for finding in versions.proxmox(config, health.version):
            yield finding
        try:
            store = image_store_condition(await _place_images(config, proxmox))
            if not store.met:
                yield Finding("problem", "images", store.message)
            async for finding in tags.check(config, proxmox):
                yield finding
            async for finding in _compare(config, proxmox):
                yield finding
        except PvecriError as error:
            yield Finding("problem", SUBJECT, str(error))
    finally:
        await proxmox.close()


def _message(condition: Condition) -> str:
    """The condition's message, which a status shows beside its reason and this command alone."""
    if condition.reason == "ProxmoxPrivilegesMissing":
        return f"the account lacks privileges: {condition.message}"
    return condition.message


async def _place_images(config: Config, proxmox: ProxmoxApi) -> Config:
    storage = config.images.storage
    if not storage:
        return placement.placed(config, None)
    found = await proxmox.storage_config(storage)
    return placement.placed(config, placement.StoragePlace(type=found.type, path=found.path, pool=found.pool))


async def _compare(config: Config, proxmox: ProxmoxApi) -> AsyncIterator[Finding]:
    """What is lost (a pod without a CT), leaked (processes without a CT), left of a removed pod, or foreign."""
    lost, leaked = await _differences(config, proxmox)
    left = _recorded(config).removed
    if lost or leaked or left:
        await asyncio.sleep(SETTLED)
        lost_still, leaked_still = await _differences(config, proxmox)
        lost = {vmid: pod for vmid, pod in lost.items() if vmid in lost_still}
        leaked &= leaked_still
        left &= _recorded(config).removed
    for vmid, pod in sorted(lost.items()):
        message = f"pod {pod} has no CT {vmid} in Proxmox any more"
        yield Finding("warning", STORE, message, "a kubelet replaces the pod; else crictl rmp")
    for vmid in sorted(left):
        message = f"CT {vmid} of a removed pod is not destroyed yet"
        yield Finding("warning", STORE, message, "pvecri status has the reason")
    for vmid in sorted(leaked):
        message = f"processes run in the cgroup lxc/{vmid}, and Proxmox has no such CT"
        yield Finding("warning", STORE, message, f"see systemd-cgls /lxc/{vmid}")

    def known() -> Set[int]:  # read again for each CT: pods come and go meanwhile
        return _recorded(config).pods.keys()

    installation = _recorded(config).installation
    for foreign in await foreign_cts.find(proxmox, config.proxmox.node_name, known, installation):
        yield Finding("warning", STORE, str(foreign), "pvecri repair")


async def _differences(config: Config, proxmox: ProxmoxApi) -> tuple[dict[int, str], set[int]]:
    """The store's pods without a CT, by VMID, and VMIDs of pods with processes and without a CT."""
    store = _recorded(config)
    known = store.pods
    # All of the cluster: a VMID of another node is no leak here.
    guests = {guest.vmid for guest in await proxmox.guests()} | {ct.vmid for ct in await proxmox.cts()}
    trees, span = cgroups.detect(), config.proxmox.vmid_range
    groups = {int(name) for name in trees.children("lxc") if name.isdecimal()}
    leaked = {
        vmid
        for vmid in groups - guests - known.keys()
        if span.first <= vmid <= span.last and trees.processes(f"lxc/{vmid}")
    }
    lost = known.keys() - guests - store.removed
    return {vmid: known[vmid] for vmid in lost}, leaked


def _recorded(config: Config) -> Recorded:
    return recorded(config.runtime.state_dir / "pods.db")
