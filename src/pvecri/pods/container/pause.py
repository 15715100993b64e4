# SPDX-License-Identifier: Apache-2.0
"""Pause containers: who holds the namespaces that a pod's containers share and its CT cannot give them.

A pod with a user namespace of its own: Proxmox gives every unprivileged CT the same ID range and its API takes no
other. So such a pod's CT is a privileged one with nothing in it but its init, and the pause container makes the
pod's user, net, IPC, UTS and PID namespaces inside the CT's PID namespace.

A pod whose containers share a PID namespace (`shareProcessNamespace`): conmon and the OCI runtime run in the CT's
PID namespace with the node's root and rights, so no container may see that one (docs/decisions/0064). The pause
container makes one below it. It is started with the first container that needs it.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from pvecri.errors import FailedPrecondition
from pvecri.linux import namespaces
from pvecri.model import ContainerId, NamespaceMode, SandboxId, UserNamespaceKind
from pvecri.oci import pause
from pvecri.oci.abilities import Abilities
from pvecri.oci.runtime import Bundle, OciRuntime
from pvecri.oci.spec_linux import SHARED_PID
from pvecri.pods.registry import PodEntry


def pause_id(sandbox: SandboxId) -> ContainerId:
    """What the OCI runtime knows a pod's pause container by."""
    return ContainerId(f"pause-{sandbox}")


class Pauses:
    """Starts pause containers; they end with their CT."""

    def __init__(self, abilities: Abilities, runtime: OciRuntime, directory: Path) -> None:
        """`directory` will be the root filesystem of them all, read-only for them."""
        self._abilities = abilities
        self._runtime = runtime
        self._rootfs = directory

    def prepare(self) -> None:
        """Make the root filesystem. Idempotent; without the program on the node `start` fails."""
        for name in ("", "proc", "dev"):
            (self._rootfs / name).mkdir(mode=0o755, exist_ok=True)
        program = shutil.which(pause.PROGRAM)
        if program is not None:
            fresh = self._rootfs.with_suffix(".new")
            shutil.copyfile(program, fresh)
            fresh.chmod(0o755)
            fresh.replace(self._rootfs / pause.PROGRAM)  # not written to: a pod may be running the old one

    async def start(self, pod: PodEntry) -> int:
        """Start the pod's pause container and pin its PID namespace; its first process, as the node numbers it.

        The CT's PID namespace must be pinned already; of a pod whose user namespace is the CT's or the node's,
        the others, too. FailedPrecondition if the program is not installed, CommandError with the OCI runtime's
        message.
        """
        if not (self._rootfs / pause.PROGRAM).exists():
            raise FailedPrecondition(f"{pause.PROGRAM} is not installed on the node; pods with a pause need it")
        bundle = Bundle(pod.directory / "pause")
        bundle.directory.mkdir(mode=0o700)
        group = f"{pod.cgroup}/pause"
        bundle.spec.write_bytes(pause.build(self._plan(pod, group)))
        await self._runtime.run_detached(pod.namespaces, pause_id(pod.id), bundle)
        pid = self._runtime.host_pid(pod.namespaces, group, bundle.pid_file)
        await asyncio.to_thread(namespaces.pin, Path(f"/proc/{pid}/ns/pid"), pod.namespace(SHARED_PID))
        return pid

    async def share_pids(self, pod: PodEntry) -> None:
        """See that there is a PID namespace for containers to share. Idempotent."""
        async with pod.pids_lock:
            if not pod.namespace(SHARED_PID).exists():
                await self.start(pod)

    def forget(self, pod: PodEntry) -> None:
        """Drop what the OCI runtime keeps of the pause container; its CT has ended. Idempotent."""
        self._runtime.forget(pause_id(pod.id))

    def _plan(self, pod: PodEntry, group: str) -> pause.PausePlan:
        options = pod.value.config.security.namespaces
        own = {"network": "net", "uts": "uts"} if options.network is not NamespaceMode.NODE else {}
        own |= {"ipc": "ipc"} if options.ipc is not NamespaceMode.NODE else {}
        own |= {"user": "user"} if pod.value.mappings else {}
        made = pod.value.user_namespace.kind is UserNamespaceKind.POD
        return pause.PausePlan(
            rootfs=self._rootfs,
            cgroup=group,
            joined={} if made else {kind: str(pod.namespace(file)) for kind, file in own.items()},
            made=tuple(own) if made else (),
            mappings=pod.value.mappings,
            abilities=self._abilities,
        )
