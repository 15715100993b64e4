# SPDX-License-Identifier: Apache-2.0
"""A pod with a user namespace of the kubelet's choice.

Proxmox gives every unprivileged CT the same id range and its API takes no other. So such a pod's CT is a
privileged one with nothing in it but its init, and the pod's namespaces (user, net, ipc, uts, pid) are made inside
the CT's pid namespace, by a pause process that holds them. They end with the CT, as everything in it does.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

from pvecri.containers.runtime import enter_cgroup
from pvecri.errors import FailedPrecondition, InternalError
from pvecri.linux import processes
from pvecri.linux.cgroups import Cgroups
from pvecri.model import IdMapping, UserNamespace
from pvecri.pods.live import LivePod

PAUSE = "catatonit"


async def start(pod: LivePod, cgroups: Cgroups, wanted: UserNamespace) -> int:
    """Make the pod's namespaces with these mappings; the host's pid of the process that holds them.

    FailedPrecondition when the pause program is not installed on the node, InternalError when the kernel refuses.
    """
    assert pod.init is not None
    program = shutil.which(PAUSE)
    if program is None:
        raise FailedPrecondition(f"{PAUSE} is not installed on the node; a pod with a user namespace needs it")
    group = f"{pod.cgroup}/pause"
    process = await asyncio.create_subprocess_exec(
        *enter_cgroup(cgroups, group),
        "nsenter",
        f"--pid=/proc/{pod.init.pid}/ns/pid",
        "unshare",
        *("--user", "--net", "--ipc", "--uts", "--pid", "--fork", "--"),
        program,
        "-P",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    pid = await _find(cgroups, group, process)
    _map_ids(Path(f"/proc/{pid}/uid_map"), wanted.uids)
    _map_ids(Path(f"/proc/{pid}/gid_map"), wanted.gids)
    return pid


async def _find(cgroups: Cgroups, group: str, process: asyncio.subprocess.Process) -> int:
    """The pause process, once it is there."""
    while process.returncode is None:
        for pid in cgroups.processes(group):
            if processes.command_name(pid) == PAUSE:
                return pid
        await asyncio.sleep(0.002)
    assert process.stderr is not None
    said = (await process.stderr.read()).decode(errors="replace").strip()
    raise InternalError(f"the pod's namespaces could not be made: {said}")


def _map_ids(path: Path, mappings: Sequence[IdMapping]) -> None:
    path.write_text("".join(f"{each.container_id} {each.host_id} {each.length}\n" for each in mappings))
