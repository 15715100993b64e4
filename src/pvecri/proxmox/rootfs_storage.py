# SPDX-License-Identifier: Apache-2.0
"""The storage of a CT's root filesystem: whether a destroy can succeed."""

from __future__ import annotations

from pvecri.errors import NotFound, Unavailable
from pvecri.model import Vmid
from pvecri.proxmox.api import ProxmoxApi
from pvecri.proxmox.errors import Forbidden


async def check(proxmox: ProxmoxApi, vmid: Vmid) -> None:
    """Unavailable if the storage of a CT's root filesystem is not active: a destroy would fail. CtNotFound.

    A storage on which our account lacks the privileges is not checked.
    """
    storage = (await proxmox.ct_config(vmid)).rootfs_storage
    try:
        status = await proxmox.storage_status(storage)
        problem = "" if status.active else status.problem(storage)
    except Forbidden:
        return
    except NotFound as error:  # NOT_FOUND would tell the kubelet that the pod is removed
        problem = str(error)
    if problem:
        raise Unavailable(f"Proxmox: destroy CT {vmid}: its root filesystem cannot be removed: {problem}")
