# SPDX-License-Identifier: Apache-2.0
"""StartContainer, StopContainer and RemoveContainer: OCI containers inside a pod's CT.

None of these costs a Proxmox call.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from msgspec.structs import replace

from pvecri import metrics
from pvecri.config import Config
from pvecri.errors import (
    CommandError,
    DeadlineExceeded,
    FailedPrecondition,
    NotFound,
    PvecriError,
)
from pvecri.images.manager import ImageManager
from pvecri.linux.fds import STDIO_MODE
from pvecri.linux.processes import Process
from pvecri.model import (
    Container,
    ContainerState,
    SandboxPhase,
)
from pvecri.oci import spec
from pvecri.oci.abilities import Abilities
from pvecri.oci.runtime import OciRuntime, Stdio
from pvecri.pods.container import bundle, exposure, volumes
from pvecri.pods.hooks import Hooks
from pvecri.pods.registry import LiveContainer, LivePod, Pods, Told

log = logging.getLogger(__name__)

KILL_PATIENCE = 10.0
"""Seconds after SIGKILL in which a container must have ended."""

START_ERROR_CODE = 128
KILLED_CODE = 128 + signal.SIGKILL
OOM_KILLED = "OOMKilled"


class Containers:
    """Runs, ends and removes containers. Calls for one container wait for each other, others run at once."""

    def __init__(
        self,
        config: Config,
        abilities: Abilities,
        pods: Pods,
        images: ImageManager,
        runtime: OciRuntime,
        exits: Path,
        hooks: Hooks,
    ) -> None:
        """`exits` is the directory where conmon writes exit codes."""
        self._config = config
        self._abilities = abilities
        self._pods = pods
        self._images = images
        self._runtime = runtime
        self._exits = exits
        self._hooks = hooks

    # -- start ------------------------------------------------------------------------------------------------

    async def start(self, container_id: str) -> None:
        """Run a created container's command (CRI StartContainer).

        FailedPrecondition when it was started before or its pod is not ready. A container that cannot be started
        is EXITED with the reason StartError.
        """
        container = self._pods.container(container_id)
        async with container.lock:
            pod = self._pods.pod_of(container)
            if container.value.state is not ContainerState.CREATED:
                raise FailedPrecondition(f"container {container.id} is {container.value.state.value}, not created")
            if pod.value.phase is not SandboxPhase.READY:
                raise FailedPrecondition(f"container {container.id}: pod sandbox {pod.id} is not ready")
            try:
                await self._hooks.start_container(pod, container)
                await self._start(pod, container)
            except BaseException as error:
                await self._never_started(pod, container, error)
                raise
            try:
                await self._hooks.started_container(pod, container)
            finally:
                self.watch(pod, container)  # only now: nobody shall hear of its end before its start

    async def _start(self, pod: LivePod, container: LiveContainer) -> None:
        async with container.limits_lock:
            await self._create_and_start(pod, container)
            started = replace(container.value, state=ContainerState.RUNNING, started_at=time.time_ns())
            self._pods.save_container(container, started)

    async def _create_and_start(self, pod: LivePod, container: LiveContainer) -> None:
        async with AsyncExitStack() as undo:
            undo.push_async_callback(self._release, pod, container)
            await asyncio.to_thread(self._prepare_start, pod, container)
            async with exposure.hidden(pod, container, self._abilities.cgroups):
                await self._runtime.create(pod.namespaces, container.id, container.bundle, self._stdio(container))
            self._hold(pod, container)
            assert container.process is not None
            open_standard_streams(container.process.pid)
            await self._runtime.start(pod.namespaces, container.id)
            undo.pop_all()

    def _prepare_start(self, pod: LivePod, container: LiveContainer) -> None:
        """What is made only now, because it holds on to things of the node."""
        config = container.value.config
        volumes.check_sources(config)
        userns = bundle.userns(pod)
        mapped = userns is not None and (config.mounts or container.value.added_sources)
        if mapped or volumes.needs_staging(config):
            volumes.stage(container.value, bundle.staging(container), userns)
        rules = spec.allowed_devices(container.bundle.spec.read_bytes())
        if rules and not config.security.privileged:
            self._abilities.cgroups.allow_devices(pod.cgroup, rules)
        if container.value.log_path:
            Path(container.value.log_path).parent.mkdir(parents=True, exist_ok=True)

    def _stdio(self, container: LiveContainer) -> Stdio:
        value = container.value
        return Stdio(
            tty=value.config.tty,
            stdin=value.config.stdin,
            stdin_once=value.config.stdin_once,
            log=Path(value.log_path) if value.log_path else None,
            log_size_max=self._config.runtime.log_size_max,
        )

    def _hold(self, pod: LivePod, container: LiveContainer) -> None:
        """Take hold of the container's first process and of its conmon; ProcessLookupError when one is gone."""
        namespaces, bundle = pod.namespaces, container.bundle
        group = namespaces.container_cgroup(container.id)
        container.process = Process(self._runtime.host_pid(namespaces, group, bundle.pid_file))
        monitor = self._runtime.host_pid(namespaces, namespaces.cgroup, bundle.conmon_pid_file)
        container.monitor = Process(monitor)

    async def _never_started(self, pod: LivePod, container: LiveContainer, error: BaseException) -> None:
        container.settled.set()
        ended = replace(
            container.value,
            state=ContainerState.EXITED,
            exit_code=START_ERROR_CODE,
            finished_at=time.time_ns(),
            reason="StartError",
            message=str(error) or type(error).__name__,
        )
        self._pods.save_container(container, ended)
        await self._hooks.stop_container(pod, container)

    # -- the end of a container -------------------------------------------------------------------------------

    def adopt(self, pod: LivePod, container: LiveContainer) -> None:
        """Take over a container that an earlier daemon started, whether it still runs or has ended."""
        if exposure.exposes(pod):  # the daemon may have ended while another container was being made
            exposure.thaw(self._abilities.cgroups, pod.group(container.id))
        try:
            self._hold(pod, container)
        except (OSError, ValueError):
            self._let_go(container)
        self.watch(pod, container)

    def release_again(self, pod: LivePod, container: LiveContainer) -> None:
        """Let go of what an ended container may still hold: the daemon may have died before it did so."""
        container.watcher = asyncio.create_task(self._settle(pod, container), name=f"release {container.id}")

    def lost(self, container: LiveContainer) -> None:
        """Record that a created container cannot be started any more: the node was restarted."""
        self._lose(container, KILLED_CODE, "Error", "the node was restarted before the container was started")
        container.settled.set()

    def cut_off(self, pod: LivePod, container: LiveContainer) -> None:
        """Undo a start that ended with an earlier daemon: its client was never told that it succeeded."""
        self._runtime.abandon(pod.namespaces, container.id)
        message = "the daemon ended while the container was being started"
        self._lose(container, START_ERROR_CODE, "StartError", message)
        self.release_again(pod, container)

    def _lose(self, container: LiveContainer, code: int, reason: str, message: str) -> None:
        container.told = Told.ENDED
        ended = replace(
            container.value,
            state=ContainerState.EXITED,
            exit_code=code,
            finished_at=time.time_ns(),
            reason=reason,
            message=message,
        )
        self._pods.save_container(container, ended)

    def watch(self, pod: LivePod, container: LiveContainer) -> None:
        """Record the container's end when it comes."""
        container.watcher = asyncio.create_task(
            self._watch(pod, container), name=f"watch container {container.id}"
        )

    async def _watch(self, pod: LivePod, container: LiveContainer) -> None:
        # conmon ends after the container and after writing its exit code; when the CT is killed, with it.
        if container.monitor is not None:
            await container.monitor.wait()
        ended = self._ended(container)
        if ended.reason == OOM_KILLED:
            metrics.OOM_KILLS.inc()
        self._pods.save_container(container, ended)
        await self._hooks.stop_container(pod, container)
        await self._settle(pod, container)

    async def _settle(self, pod: LivePod, container: LiveContainer) -> None:
        try:
            await self._release(pod, container)
        except (PvecriError, OSError) as error:
            log.warning("container %s: cannot let go of all it held: %s", container.id, error)
        finally:
            container.settled.set()

    def _ended(self, container: LiveContainer) -> Container:
        """The container's value with how it ended. No exit file means that conmon was killed."""
        exit_file = self._exits / container.id
        try:
            code = int(exit_file.read_text())
            finished_at = exit_file.stat().st_mtime_ns
        except (OSError, ValueError):
            code, finished_at = KILLED_CODE, time.time_ns()
        reason = "Completed" if code == 0 else "Error"
        if container.bundle.oom_file.exists():
            reason = OOM_KILLED
        return replace(
            container.value,
            state=ContainerState.EXITED,
            exit_code=code,
            finished_at=max(finished_at, container.value.started_at),
            reason=reason,
        )

    async def _release(self, pod: LivePod, container: LiveContainer) -> None:
        """Let go of all that a container holds while it runs. Idempotent; failures are logged."""
        self._let_go(container)
        try:
            await self._runtime.delete(pod.namespaces if pod.alive else None, container.id)
        except CommandError as error:
            log.warning("container %s: %s", container.id, error)
            self._abilities.cgroups.kill(f"{pod.cgroup}/{container.id}")
            self._runtime.forget(container.id)
        (self._exits / container.id).unlink(missing_ok=True)
        await asyncio.to_thread(volumes.unstage, bundle.staging(container))
        for name in bundle.rootfs_names(container.value):
            await self._images.unmount_rootfs(name)

    @staticmethod
    def _let_go(container: LiveContainer) -> None:
        for process in (container.process, container.monitor):
            if process is not None:
                process.close()
        container.process = container.monitor = None

    # -- stop and remove --------------------------------------------------------------------------------------

    async def stop(self, container_id: str, timeout: float) -> None:
        """Ask a container to end, and kill it after `timeout` seconds (CRI StopContainer).

        Idempotent: one that has ended, or is unknown, is fine. Calls at the same time each set their own limit.
        """
        try:
            container = self._pods.container(container_id)
        except NotFound:
            return
        async with container.lock:  # let a start that is under way come to its end
            pass
        if timeout > 0 and container.process is not None:
            container.process.send(signal_number(container.value.stop_signal))
            if await self._settles(container, timeout):
                return
        await self.kill(container)

    async def kill(self, container: LiveContainer) -> None:
        """Kill a container's first process and wait until all it held is released. Idempotent."""
        if container.value.state is ContainerState.RUNNING and container.process is not None:
            container.process.send(signal.SIGKILL)
        if container.watcher is None:  # it was never started
            return
        if not await self._settles(container, KILL_PATIENCE):
            raise DeadlineExceeded(f"container {container.id} did not end within {KILL_PATIENCE:g} s of SIGKILL")

    async def kill_all(self, pod: LivePod) -> None:
        """Kill all containers of a pod. Idempotent; one that does not end is left to the end of its CT."""
        kills = (self.kill(container) for container in pod.containers.values())
        for outcome in await asyncio.gather(*kills, return_exceptions=True):
            if isinstance(outcome, DeadlineExceeded):
                log.warning("%s", outcome)
            elif isinstance(outcome, BaseException):
                raise outcome

    async def settle_all(self, pod: LivePod) -> None:
        """Wait until the ends of all containers of a pod, whose CT has stopped, are recorded."""
        for container in pod.containers.values():
            if container.watcher is not None:
                await self._settles(container, KILL_PATIENCE)

    @staticmethod
    async def _settles(container: LiveContainer, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await container.settled.wait()
        except TimeoutError:
            return False
        return True

    async def remove(self, container_id: str) -> None:
        """Remove a container, killing it first when it runs (CRI RemoveContainer). Idempotent."""
        try:
            container = self._pods.container(container_id)
        except NotFound:
            return
        await self.discard(container)

    async def discard(self, container: LiveContainer) -> None:
        """As `remove`, by the object."""
        async with container.lock:  # so that no start comes between
            await self.kill(container)
            for name in bundle.rootfs_names(container.value):
                await self._images.remove_rootfs(name)
            await self._hooks.remove_container(self._pods.pod_of(container), container)
            await asyncio.to_thread(bundle.remove_bundle, container.bundle)
            self._pods.drop_container(container)


def open_standard_streams(pid: int) -> None:
    """Let every user of a container open its standard streams by name, as `/dev/stderr` and `/proc/self/fd/1`.

    The pipes are conmon's, and so the node's root's. Before 2.1.8 it left them mode 0600: in a user namespace
    not even the container's root could open them then, which nginx and httpd do. A terminal has its mode from
    the mount options of /dev/pts.
    """
    for number in range(3):
        stream = Path(f"/proc/{pid}/fd/{number}")
        with suppress(FileNotFoundError):  # the process has ended, or closed it
            if stream.is_fifo():
                stream.chmod(STDIO_MODE)


def signal_number(name: str) -> int:
    """A signal by name (`SIGTERM`, `TERM`, `RTMIN+3`) or number, as images write it; SIGTERM when unknown."""
    text = name.upper().removeprefix("SIG")
    base, sign, offset = text.partition("+") if "+" in text else text.partition("-")
    try:
        number = int(text) if text.isdecimal() else int(signal.Signals[f"SIG{base}"]) + int(f"{sign}{offset}" or 0)
    except (KeyError, ValueError):
        number = 0
    if 0 < number < signal.NSIG:
        return number
    log.warning("unknown stop signal %r, using SIGTERM", name)
    return int(signal.SIGTERM)
