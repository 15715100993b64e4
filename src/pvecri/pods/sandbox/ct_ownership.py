# SPDX-License-Identifier: Apache-2.0
"""Whether the CT with a pod's VMID is the one that was created for the pod (decision 0078).

Notes and tags are copied by a clone and by a restored backup, so they prove nothing. While the pod's init runs,
the kernel does: its PID namespace is the one that the pod has pinned. Once it is stopped, all of these must hold:

* the store has the pod with this VMID, which a copy elsewhere does not have;
* the notes name the pod;
* the root volume is the recorded one: a backup restored over the CT, a move or a conversion renews it;
* no task has destroyed the CT or restored a backup over it since the VMID's last create (the node's task log).

Nothing here writes. A CT that is not the pod's is left as it is; foreign_cts.py reports it.
"""

from __future__ import annotations

import os
from pathlib import Path

from pvecri.errors import FailedPrecondition
from pvecri.model import SandboxPhase
from pvecri.pods.registry import PodEntry
from pvecri.pods.sandbox import ct_notes
from pvecri.proxmox.answers import CtConfig
from pvecri.proxmox.api import ProxmoxApi
from pvecri.proxmox.errors import CtHidden

DESTROY_END_TIMEOUT = 5.0
"""Seconds from a CT's leaving its pool to the end of its destroy: Proxmox removes firewall, jobs and config."""


class NotOwnCt(FailedPrecondition):
    """The CT with a pod's VMID is not the pod's; the message says why."""


class CtOwnership:
    """See the module."""

    def __init__(self, proxmox: ProxmoxApi) -> None:
        self._proxmox = proxmox

    async def confirm(self, pod: PodEntry) -> None:
        """Raise NotOwnCt unless the CT is the pod's, CtNotFound if there is none.

        Call it right before each request that stops or destroys the CT. While a CT is being created its notes may
        be missing: waits for the end of the create, and raises CtLocked or CtHidden after proxmox.task_timeout.
        For a pod whose CT has run, only a destroy can be under way: CtLocked after `DESTROY_END_TIMEOUT`, and a CT
        that stays hidden from our account is another's.
        """
        if pod.alive:
            return
        vmid, created = pod.value.vmid, pod.value.ct_made
        try:
            config = await self._proxmox.idle_ct_config(vmid, DESTROY_END_TIMEOUT if created else None)
        except CtHidden as hidden:
            if not created:
                raise
            raise _not_own(pod, "it is not in our pool") from hidden
        if problem := difference(pod, config):
            raise _not_own(pod, problem)
        if task := await self._proxmox.replaced_by(vmid):
            # CtNotFound if that was a destroy of ours, which was still running.
            await self._proxmox.ct_config(vmid)
            raise _not_own(pod, f"task {task.upid} has replaced it")


def difference(pod: PodEntry, config: CtConfig) -> str:
    """What a CT's config has that the pod's CT cannot have; empty if there is nothing. Pure."""
    recorded = pod.value.ct_volume
    if ct_notes.owner(config.description).sandbox != pod.id:
        return "its notes do not name the pod"
    if config.template:
        return "it was converted to a template"
    if recorded and config.root_volume != recorded:
        return f"its root volume is {config.root_volume or 'missing'}, the pod's was {recorded}"
    return ""


def is_pods_init(pod: PodEntry, pid: int) -> bool:
    """Whether a CT's init has the PID namespace that the pod pinned, and so has run since the pod was created."""
    try:
        return os.path.samestat(pod.namespace("pid").stat(), Path(f"/proc/{pid}/ns/pid").stat())
    except FileNotFoundError:
        # Unpinned: the pod was stopped, or its creation was cut off. A READY one is of an earlier version.
        return pod.value.phase is SandboxPhase.READY


def _not_own(pod: PodEntry, problem: str) -> NotOwnCt:
    return NotOwnCt(f"CT {pod.value.vmid} does not belong to pod {pod.value.name} ({pod.id}): {problem}")
