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
import re
import time
from pathlib import Path

from pvecri.errors import FailedPrecondition, Unavailable
from pvecri.model import SandboxPhase, Vmid
from pvecri.pods.registry import PodEntry
from pvecri.pods.sandbox import ct_notes
from pvecri.proxmox.answers import CtConfig
from pvecri.proxmox.api import ProxmoxApi
from pvecri.proxmox.errors import CtHidden, CtLocked, CtNotFound, CtProtected

DESTROY_END_TIMEOUT = 5.0
"""Seconds from a CT's leaving its pool to the end of its destroy: Proxmox removes firewall, jobs and config."""


class NotOwnCt(FailedPrecondition):
    """The CT with a pod's VMID is not the pod's; the message says why."""


class AddedVolumes(FailedPrecondition):
    """The pod's CT has volumes that pvecri has not created, and its destroy would take them with it."""


_VOLUME_OPTION = re.compile(r"(?:mp|unused)\d+")


class CtOwnership:
    """See the module."""

    def __init__(self, proxmox: ProxmoxApi, request_timeout: float) -> None:
        self._proxmox = proxmox
        self._request_timeout = request_timeout

    async def confirm(self, pod: PodEntry) -> None:
        """Raise NotOwnCt unless the CT is the pod's, CtNotFound if there is none.

        After a create whose outcome is unknown, Unavailable instead of CtNotFound, for proxmox.request_timeout:
        Proxmox activates storages, which may hang, before it writes the CT's config, and it finishes a request
        whose client has gone (decision 0021).

        Call it right before each request that stops or destroys the CT. While a CT is being created its notes may
        be missing: waits for the end of the create, and raises CtLocked or CtHidden after proxmox.task_timeout.
        For a pod whose CT has run, only a destroy can be under way: CtLocked after `DESTROY_END_TIMEOUT`. A CT
        that stays hidden from our account is another's, unless it was hidden while it ran, or a create of ours is
        running: then CtHidden.
        """
        await self._confirmed(pod)

    async def confirm_destroy(self, pod: PodEntry) -> None:
        """As `confirm`; and raise while Proxmox would refuse the destroy or it would destroy too much.

        CtLocked, CtProtected, and AddedVolumes if the CT has volumes that somebody has added to it. Without a
        task of Proxmox: a backup may have the lock for hours.
        """
        config = await self._confirmed(pod)
        if config is None:
            return
        vmid, name = pod.value.vmid, pod.value.name
        if config.lock:
            raise CtLocked(f"destroy CT {vmid}", f"CT is locked ({config.lock})")
        if config.raw.get("protection") == "1":
            raise CtProtected(f"destroy CT {vmid}", "protection mode enabled")
        if added := added_volumes(vmid, config):
            shown = ", ".join(f"{option} {volume}" for option, volume in added.items())
            raise AddedVolumes(
                f"CT {vmid} of pod {name} is not destroyed: it has volumes that were added to it ({shown}), which "
                f"would be destroyed, too: `pct move-volume {vmid} {min(added)} --target-vmid VMID` keeps one, "
                f"`pct set {vmid} --delete {min(added)}` and then the same for its unusedN destroys it"
            )

    async def _confirmed(self, pod: PodEntry) -> CtConfig | None:
        """The config of the stopped CT, which is the pod's; None if it runs."""
        if pod.alive:
            return None
        vmid, created = pod.value.vmid, pod.value.ct_made
        try:
            config = await self._proxmox.idle_ct_config(vmid, DESTROY_END_TIMEOUT if created else None)
        except CtNotFound as missing:
            sent = pod.create_unanswered
            if sent is not None and time.monotonic() < sent + self._request_timeout:
                raise Unavailable(
                    f"CT {vmid} does not exist yet: Proxmox has not answered its create, and may still process it"
                ) from missing
            raise
        except CtHidden as hidden:
            if pod.hidden or (not created and await self._proxmox.create_runs(vmid)):
                raise
            raise _not_own(pod, "it is not in our pool") from hidden
        if problem := difference(pod, config):
            raise _not_own(pod, problem)
        if task := await self._proxmox.replaced_by(vmid):
            # CtNotFound if that was a destroy of ours, which was still running.
            await self._proxmox.ct_config(vmid)
            raise _not_own(pod, f"task {task.upid} has replaced it")
        return config


def added_volumes(vmid: Vmid, config: CtConfig) -> dict[str, str]:
    """The CT's own volumes other than its root filesystem, by option. Pure.

    Proxmox leaves bind mounts, devices and volumes of other guests, which a volume's name names (`vm-VMID-…`).
    """
    volumes = {
        option: value.partition(",")[0].removeprefix("volume=")
        for option, value in sorted(config.raw.items())
        if _VOLUME_OPTION.fullmatch(option)
    }
    own = re.compile(rf"[^/].*\b\w+-{vmid}-")
    return {option: volume for option, volume in volumes.items() if own.match(volume)}


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
