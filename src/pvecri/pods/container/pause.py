# SPDX-License-Identifier: Apache-2.0
"""Pause containers: they own the namespaces that a pod's containers share and that its CT cannot provide.

A pod with a user namespace of its own: Proxmox maps every unprivileged CT to the same ID range, and its API
accepts no other. Such a pod's CT is privileged and contains only its init; the pause container creates the pod's
user, net, IPC, UTS and PID namespaces inside the CT's PID namespace (decision 0051).

A pod whose containers share a PID namespace (`shareProcessNamespace`): conmon and the OCI runtime run in the CT's
PID namespace with the node's root directory and privileges, so no container may be in that one (decision 0064).
The pause container creates a nested one. It is started with the first container that needs it.
"""

from __future__ import annotations

import asyncio
import errno
import filecmp
import logging
import shutil
from pathlib import Path

from pvecri.errors import FailedPrecondition
from pvecri.linux import namespaces
from pvecri.model import ContainerId, NamespaceMode, SandboxId, UserNamespaceKind
from pvecri.oci import pause
from pvecri.oci.features import HostFeatures
from pvecri.oci.runtime import Bundle, OciRuntime
from pvecri.oci.spec_linux import SHARED_PID
from pvecri.pods.registry import PodEntry

log = logging.getLogger(__name__)


def pause_id(sandbox: SandboxId) -> ContainerId:
    """The id of a pod's pause container in the OCI runtime."""
    return ContainerId(f"pause-{sandbox}")


class Pauses:
    """Starts pause containers; they end with their CT."""

    def __init__(self, features: HostFeatures, runtime: OciRuntime, directory: Path) -> None:
        """`directory` becomes the read-only root filesystem of all pause containers."""
        self._features = features
        self._runtime = runtime
        self._rootfs = directory

    def prepare(self) -> None:
        """Create the root filesystem. Idempotent. If the program is not installed, only `start` fails.

        Neither does a full disk fail it: the program that is there stays, and pods can be ended.
        """
        # The mountpoints: the root filesystem is read-only.
        for name in ("", "proc", "dev"):
            (self._rootfs / name).mkdir(mode=0o755, exist_ok=True)
        program, copy = shutil.which(pause.PROGRAM), self._rootfs / pause.PROGRAM
        if program is None or (copy.exists() and filecmp.cmp(program, copy, shallow=False)):
            return
        fresh = self._rootfs.with_suffix(".new")
        try:
            shutil.copyfile(program, fresh)
            fresh.chmod(0o755)
            fresh.replace(copy)  # a running executable cannot be written to (ETXTBSY)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            fresh.unlink(missing_ok=True)
            log.warning("cannot copy %s to %s: %s", program, copy, error.strerror)

    async def start(self, pod: PodEntry) -> int:
        """Start the pod's pause container and pin its PID namespace; returns its PID on the node.

        The CT's PID namespace must be pinned; so must the others, unless the pause container creates them.
        FailedPrecondition if the program is not installed, CommandError with the OCI runtime's message.
        """
        if not (self._rootfs / pause.PROGRAM).exists():
            raise FailedPrecondition(f"{pause.PROGRAM} is not installed on the node; pods with a pause need it")
        bundle = Bundle(pod.directory / "pause")
        bundle.directory.mkdir(mode=0o700)  # no process of the pod needs it
        group = pod.cgroups.pause
        bundle.spec.write_bytes(pause.build(self._plan(pod, group)))
        # Without conmon: it has no log, no terminal, and nobody needs its exit code.
        await self._runtime.run_detached(pod.namespaces, pause_id(pod.id), bundle)
        pid = self._runtime.host_pid(pod.namespaces, group, bundle.pid_file)
        await asyncio.to_thread(namespaces.pin, Path(f"/proc/{pid}/ns/pid"), pod.namespace(SHARED_PID))
        return pid

    async def share_pids(self, pod: PodEntry) -> None:
        """Start the pause container unless it runs: containers share its PID namespace. Idempotent."""
        async with pod.pids_lock:
            if not pod.namespace(SHARED_PID).exists():
                await self.start(pod)

    def forget(self, pod: PodEntry) -> None:
        """Delete the OCI runtime's state of the pause container after the end of the CT. Idempotent."""
        self._runtime.remove_state(pause_id(pod.id))

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
            features=self._features,
        )
