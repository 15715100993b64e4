# SPDX-License-Identifier: Apache-2.0
"""StartContainer: conmon and the OCI runtime run the container inside the pod's CT. No Proxmox call."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from pvecri.concurrency import in_own_thread
from pvecri.config.settings import Config
from pvecri.errors import FailedPrecondition, InternalError, InvalidArgument, ResourceExhausted
from pvecri.linux import limits
from pvecri.linux.fds import STDIO_MODE
from pvecri.model import Container, ContainerState, SandboxPhase
from pvecri.oci import spec
from pvecri.oci.features import HostFeatures
from pvecri.oci.runtime import OciRuntime, Stdio
from pvecri.pods.container import bundle, exposure, volumes
from pvecri.pods.container.exit import START_ERROR_CODE, ContainerExits
from pvecri.pods.hooks import Hooks
from pvecri.pods.monitor_mounts import MonitorMounts
from pvecri.pods.registry import ContainerEntry, PodEntry, Registry, refuse_front

PIDS_OF_A_START = 32
"""Room for conmon and the OCI runtime while they start a container: 14 processes and threads on 2 cores with runc,
more on larger machines.
"""


class ContainerStarter:
    """Starts containers. Calls for one container wait for each other, those for different containers do not."""

    def __init__(
        self,
        config: Config,
        features: HostFeatures,
        registry: Registry,
        runtime: OciRuntime,
        exits: ContainerExits,
        hooks: Hooks,
        monitor_mounts: MonitorMounts,
    ) -> None:
        self._config = config
        self._mounts = monitor_mounts
        self._features = features
        self._registry = registry
        self._runtime = runtime
        self._exits = exits
        self._hooks = hooks

    async def start(self, container_id: str) -> None:
        """Start a created container (CRI StartContainer).

        FailedPrecondition unless the container is CREATED and its sandbox READY, Unavailable while the node shuts
        down. A container that cannot be started becomes EXITED with the reason StartError.
        """
        self._registry.node_shutdown.check()
        container = self._registry.container(container_id)
        async with container.lock:
            pod = self._registry.pod_of(container)
            refuse_front(pod.value.front, f"container {container.id}")
            if container.value.state is not ContainerState.CREATED:
                raise FailedPrecondition(f"container {container.id} is {container.value.state.value}, not created")
            if pod.value.phase is not SandboxPhase.READY:
                raise FailedPrecondition(f"container {container.id}: pod sandbox {pod.id} is not ready")
            # StoreUnavailable now, and not after the container's program has begun.
            self._registry.save_container(container, container.value)
            try:
                await self._hooks.start_container(pod, container)
                # No update of the limits between the OCI runtime's reading of the spec and RUNNING.
                async with container.limits_lock, AsyncExitStack() as undo:
                    undo.push_async_callback(self._exits.release, pod, container)
                    await self._create_and_start(pod, container)
                    started = replace(container.value, state=ContainerState.RUNNING, started_at=time.time_ns())
                    self._registry.save_container(container, started)
                    undo.pop_all()
            # Also a cancellation: the undo has ended what ran, and a container is started once.
            except BaseException as error:
                await self._record_start_error(pod, container, error)
                raise
            try:
                await self._hooks.started_container(pod, container)
            finally:
                self._exits.watch(pod, container)  # only now: plugins must see PostStart before Stop
                if container.process is not None:
                    self._mounts.drop(container.process)

    async def _create_and_start(self, pod: PodEntry, container: ContainerEntry) -> None:
        await in_own_thread(partial(self._prepare, pod, container))
        with self._pids_limit_named(pod):
            async with exposure.hidden(pod, container, self._features.cgroups):
                await self._runtime.create(
                    pod.namespaces, container.id, container.bundle, self._stdio(container.value)
                )
        self._exits.open_processes(pod, container)
        assert container.process is not None
        # Between create and start: the process has its streams, and the container's program does not run yet.
        open_standard_streams(container.process.pid)
        await self._runtime.start(pod.namespaces, container.id)

    @contextmanager
    def _pids_limit_named(self, pod: PodEntry) -> Iterator[None]:
        """ResourceExhausted if conmon or the OCI runtime fails in a pod that is near its PID limit.

        Both run under the pod's limit, and their messages about a failed fork differ or are missing.
        """
        try:
            yield
        except InternalError as error:
            left = limits.pids_left(self._features.cgroups, pod.cgroups.ct)
            if left is None or left >= PIDS_OF_A_START:
                raise
            raise ResourceExhausted(
                f"the pod may have {left} more processes and threads, and the start of a container takes up to "
                f"{PIDS_OF_A_START} (the kubelet's podPidsLimit): {error}"
            ) from error

    def _prepare(self, pod: PodEntry, container: ContainerEntry) -> None:
        """What is done at start and not at creation, because it keeps mounts of the node busy. Blocks."""
        config = container.value.config
        # Again: a hostPath may have been removed since the creation.
        volumes.check_sources(config)
        userns = bundle.userns(pod)
        mapped = userns is not None and (config.mounts or container.value.added_sources)
        if mapped or volumes.needs_staging(config):
            volumes.stage(container.value, bundle.staging(container), userns)
        rules = spec.allowed_devices(container.bundle.spec.read_bytes())
        if rules and not config.security.privileged:
            # A cgroup's device filter cannot allow what its parent's, here the CT's, denies.
            self._features.cgroups.allow_devices(pod.cgroups.ct, rules)
        if container.value.log_path:
            # A kubelet has made it, other clients may not have.
            _make_log_directory(Path(container.value.log_path).parent)

    def _stdio(self, value: Container) -> Stdio:
        return Stdio(
            tty=value.config.tty,
            stdin=value.config.stdin,
            stdin_once=value.config.stdin_once,
            log=Path(value.log_path) if value.log_path else None,
            log_size_max=self._config.runtime.log_size_max,
        )

    async def _record_start_error(self, pod: PodEntry, container: ContainerEntry, error: BaseException) -> None:
        container.released.set()
        self._exits.record(container, START_ERROR_CODE, "StartError", str(error) or type(error).__name__)
        await self._hooks.stop_container(pod, container)


def _make_log_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # a file is in its place
        raise InvalidArgument("config.log_path", f"cannot create {directory}: {error.strerror}") from error


def open_standard_streams(pid: int) -> None:
    """Let a container's users open its standard streams by name, as `/dev/stderr` and `/proc/self/fd/1`.

    The pipes are conmon's and owned by the node's root. conmon before 2.1.8 leaves them with mode 0600: in a user
    namespace not even the container's root can open them then, as nginx and httpd do. A terminal has its mode from
    the mount options of /dev/pts.
    """
    for number in range(3):
        stream = Path(f"/proc/{pid}/fd/{number}")
        with suppress(FileNotFoundError):  # the process has exited or closed it
            if stream.is_fifo():
                stream.chmod(STDIO_MODE)
