# SPDX-License-Identifier: Apache-2.0
"""Cgroups of a CT that is gone.

LXC removes a CT's cgroups once, when it ends, and leaves those in which a process is still ending. While one of
them exists, LXC starts no CT of that VMID: Proxmox sets the cgroups' paths, so that LXC may not choose others.
"""

from __future__ import annotations

import logging

from pvecri.linux.cgroups import Cgroups
from pvecri.model import Vmid
from pvecri.oci.pod_cgroups import PodCgroups

log = logging.getLogger(__name__)


def remove(cgroups: Cgroups, vmid: Vmid) -> bool:
    """Remove the empty cgroups of a CT that does not exist; whether there are none any more. Idempotent.

    Nothing is removed while a process is in one of them: it is that of a CT that our account may not see, or one
    that a person has to look at (`pvecri check`).
    """
    groups = [PodCgroups(vmid).ct, f"/lxc.monitor/{vmid}"]
    left = [group for group in groups if cgroups.exists(group)]
    if not left:
        return True
    if pids := [pid for group in left for pid in cgroups.processes(group)]:
        log.warning("VMID %d is not used: process %d is in the cgroup of its CT", vmid, pids[0])
        return False
    try:
        for group in left:
            cgroups.remove(group)
    except OSError as error:
        log.warning("VMID %d is not used: the cgroup of an earlier CT cannot be removed: %s", vmid, error)
        return False
    return True
