# SPDX-License-Identifier: Apache-2.0
"""The exit of a container: detected by its conmon's end, recorded, its resources released.

Also what recovery.py does with the containers of the previous daemon process.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec
from msgspec.structs import replace

from pvecri.errors import CommandError, DeadlineExceeded
from pvecri.images.manager import ImageManager
from pvecri.linux import cgroup_mirror
from pvecri.linux.cgroups import Cgroups
from pvecri.linux.processes import Process
from pvecri.model import ContainerState, FrontContainer
from pvecri.observability import metrics
from pvecri.oci.runtime import OciRuntime
from pvecri.pods.container import bundle, exposure, volumes
from pvecri.pods.hooks import Hooks
from pvecri.pods.node_downtime import NodeDowntime
from pvecri.pods.registry import ContainerEntry, LifecycleEvent, PodEntry, Registry
from pvecri.supervision import Step, Supervisor, attempt

log = logging.getLogger(__name__)

START_ERROR_CODE = 128
"""Exit code of a container that could not be started, as containerd has it."""
KILLED_CODE = 128 + signal.SIGKILL
OOM_KILLED = "OOMKilled"
RELEASE = "release of container"


class ContainerExits:
    """Records how containers exit, and releases what they use while they run."""

    def __init__(
        self,
        registry: Registry,
        images: ImageManager,
        runtime: OciRuntime,
        cgroups: Cgroups,
        directory: Path,
        hooks: Hooks,
        supervisor: Supervisor,
        downtime: NodeDowntime,
    ) -> None:
        """`directory` is conmon's --exit-dir: one file a container, with its exit code."""
        self._registry = registry
        self._images = images
        self._runtime = runtime
        self._cgroups = cgroups
        self._directory = directory
        self._hooks = hooks
        self._supervisor = supervisor
        self._downtime = downtime

    def open_processes(self, pod: PodEntry, container: ContainerEntry) -> None:
        """Open pidfds of the container's first process and of its conmon; ProcessLookupError if one has exited."""
        namespaces, bundle = pod.namespaces, container.bundle
        group = namespaces.cgroups.container(container.id)
        # conmon's pid files have PIDs of the CT's namespace: the cgroup has those of the node (decision 0002).
        process = self._runtime.host_pid(namespaces, group, bundle.pid_file)
        container.process = Process(process)
        monitors = namespaces.cgroups.monitors if container.value.front is None else group
        monitor = self._runtime.monitor_pid(namespaces, monitors, bundle.conmon_pid_file, process)
        container.monitor = Process(monitor)

    def watch(self, pod: PodEntry, container: ContainerEntry) -> None:
        """Record the container's exit when it happens, and release its resources then."""
        watch = partial(self._watch, pod, container)
        container.watcher = self._supervisor.until_done("watch of container", watch, container.id)

    async def _watch(self, pod: PodEntry, container: ContainerEntry) -> None:
        """Repeatable from any point."""
        # conmon exits after the container and after writing the exit file; if the CT is killed, with it.
        if container.monitor is not None:
            await container.monitor.wait()
        # A front may kill a container before it starts it.
        unstarted = container.value.front is not None and container.value.state is ContainerState.CREATED
        if unstarted or container.value.state is ContainerState.RUNNING:
            self._record_exit(pod, container)
        action = f"container {container.id}: notifying NRI plugins of its exit"
        await attempt(partial(self._hooks.stop_container, pod, container), RELEASE, action)
        await self._release_and_signal(pod, container)

    def _record_exit(self, pod: PodEntry, container: ContainerEntry) -> None:
        exit_file = self.file(container)
        try:
            code = int(exit_file.read_text())
            finished_at = exit_file.stat().st_mtime_ns
        except (FileNotFoundError, ValueError):  # conmon was killed before it wrote the file
            code, finished_at = KILLED_CODE, self._downtime.end_of(container.value.started_at)
            metrics.MONITORS_LOST.inc()
        reason = "Completed" if code == 0 else "Error"
        if container.bundle.oom_file.exists():
            reason = OOM_KILLED
            names = pod.value.config.metadata.namespace, container.value.config.metadata.name
            metrics.OOM_KILLED_NAMES.use(*names)
            metrics.OOM_KILLS_BY_NAME.labels(*names).inc()
            metrics.OOM_KILLS.inc()
        # File timestamps have the granularity of a clock tick: one may be before the start of a short container.
        self.record(container, code, reason, finished_at=max(finished_at, container.value.started_at))

    def record(
        self, container: ContainerEntry, code: int, reason: str, message: str = "", finished_at: int = 0
    ) -> None:
        """Store that a container has exited; `finished_at` is nanoseconds since the epoch, default now."""
        exited = replace(
            container.value,
            state=ContainerState.EXITED,
            exit_code=code,
            finished_at=finished_at or time.time_ns(),
            reason=reason,
            message=message,
        )
        self._registry.save_container(container, exited, ending=True)

    # -- resources --------------------------------------------------------------------------------------------

    async def release(self, pod: PodEntry, container: ContainerEntry) -> None:
        """Release all that a container uses while it runs: processes, cgroup, mounts. Idempotent.

        A failure is reported and skips no other part; what is left is removed with the container.
        """
        _close_processes(container)
        front = container.value.front
        parts = self._parts(pod, container) if front is None else self._parts_of_front(pod, container, front)
        for action, part in parts.items():
            await attempt(part, RELEASE, f"container {container.id}: {action}")

    def _parts(self, pod: PodEntry, container: ContainerEntry) -> dict[str, Step]:
        parts: dict[str, Step] = {
            "deleting it with the OCI runtime": partial(self._delete, pod, container),
            "removing its exit file": partial(self._remove_exit_file, container),
            "unmounting its volumes": partial(asyncio.to_thread, volumes.unstage, bundle.staging(container)),
        }
        for name in bundle.rootfs_names(container.value):
            parts[f"unmounting {name}"] = partial(self._images.unmount_rootfs, name)
        return parts

    def _parts_of_front(self, pod: PodEntry, container: ContainerEntry, front: FrontContainer) -> dict[str, Step]:
        """Not its cgroup and the OCI runtime's state of it: they stay until the front deletes it."""
        group = pod.cgroups.container(container.id)
        return {
            # If the monitor was killed alone, the container is left without a parent that the front knows.
            "killing what is left": partial(asyncio.to_thread, self._cgroups.kill, group),
            "removing its exit file": partial(self._remove_exit_file, container),
            "unmounting its cgroup": partial(asyncio.to_thread, cgroup_mirror.remove, self._cgroups, front.cgroup),
        }

    async def delete_of_front(self, pod: PodEntry, container: ContainerEntry) -> None:
        """Delete all that a front's container has on the node, but for its bundle and its record. Idempotent."""
        await self.release(pod, container)
        if _needs_the_runtime(container):
            delete = partial(self._runtime.delete, None, container.id)
            await attempt(delete, RELEASE, f"container {container.id}: deleting it with the OCI runtime")
        await asyncio.to_thread(self._remove_of_front, pod, container)

    def _remove_of_front(self, pod: PodEntry, container: ContainerEntry) -> None:
        self._runtime.remove_state(container.id)
        with suppress(OSError):  # a process that does not die of SIGKILL; it ends with the CT
            self._cgroups.remove(pod.cgroups.container(container.id))

    async def _delete(self, pod: PodEntry, container: ContainerEntry) -> None:
        try:
            # Without the CT there is no PID namespace to run the OCI runtime in.
            await self._runtime.delete(pod.namespaces if pod.alive else None, container.id)
        except (CommandError, DeadlineExceeded) as error:
            log.warning("container %s: %s", container.id, error)
            self._cgroups.kill(pod.cgroups.container(container.id))
            self._runtime.remove_state(container.id)

    async def _remove_exit_file(self, container: ContainerEntry) -> None:
        # Until the exit code is in the store, the next daemon process reads it here.
        if container.id not in self._registry.unsaved:
            self.forget(container)

    def forget(self, container: ContainerEntry) -> None:
        """Remove the exit file of a container that is being removed. Idempotent."""
        self.file(container).unlink(missing_ok=True)

    def file(self, container: ContainerEntry) -> Path:
        """The file with the container's exit code, which its monitor writes before it ends."""
        return self._directory / container.id

    async def _release_and_signal(self, pod: PodEntry, container: ContainerEntry) -> None:
        try:
            await self.release(pod, container)
        finally:
            container.released.set()

    # -- containers of the previous daemon process ------------------------------------------------------------

    def adopt(self, pod: PodEntry, container: ContainerEntry) -> None:
        """Watch a container that the previous daemon process started; it may have exited meanwhile."""
        exposure.thaw_after_crash(pod, container, self._cgroups)
        try:
            self.open_processes(pod, container)
        except (FileNotFoundError, ProcessLookupError, ValueError):  # it has exited
            _close_processes(container)
        self.watch(pod, container)

    def release_again(self, pod: PodEntry, container: ContainerEntry) -> None:
        """Release the resources of an exited container: the daemon may have ended before it did so. Idempotent."""
        if container.watcher is not None:
            return
        release = partial(self._release_and_signal, pod, container)
        container.watcher = self._supervisor.until_done(RELEASE, release, container.id)

    def record_lost(self, container: ContainerEntry) -> None:
        """Record that a created container cannot be started: the node was rebooted, its bundle was in /run."""
        container.notified = LifecycleEvent.STOPPED
        message = "the node was restarted before the container was started"
        finished_at = self._downtime.end_of(container.value.created_at)
        self.record(container, KILLED_CODE, "Error", message, finished_at)
        container.released.set()

    def abort_start(self, pod: PodEntry, container: ContainerEntry) -> None:
        """Undo a start during which the previous daemon process ended: its client got no success.

        `release_again` has to follow.
        """
        self._runtime.kill_monitor(pod.namespaces, container.id)
        container.notified = LifecycleEvent.STOPPED
        message = "the daemon ended while the container was being started"
        self.record(container, START_ERROR_CODE, "StartError", message)


def _needs_the_runtime(container: ContainerEntry) -> bool:
    """Whether the deletion of a front's container is more than that of its cgroup and of the OCI runtime's state.

    The program runs the poststop hooks, and removes groups of resctrl.
    """
    try:
        spec = msgspec.json.decode(container.bundle.spec.read_bytes())
    except (OSError, msgspec.DecodeError):
        return False
    hooks, linux = spec.get("hooks") or {}, spec.get("linux") or {}
    return bool(hooks.get("poststop") or linux.get("intelRdt"))


def _close_processes(container: ContainerEntry) -> None:
    for process in (container.process, container.monitor):
        if process is not None:
            process.close()
    container.process = container.monitor = None
