# SPDX-License-Identifier: Apache-2.0
"""The daemon: starts every component, in order, and stops them in reverse."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pvecri
from pvecri.config.settings import DEFAULT_PATH, Config, ConfigError
from pvecri.cri.health import HealthService
from pvecri.cri.image_service import ImageService
from pvecri.cri.runtime_service import RuntimeService
from pvecri.cri.server import CriServer
from pvecri.errors import DeadlineExceeded, Unavailable
from pvecri.front.server import RuntimeServer
from pvecri.images import placement
from pvecri.images.manager import ImageManager
from pvecri.linux import libc, single_instance
from pvecri.linux.systemd import ServiceManager
from pvecri.network.manager import NetworkManager
from pvecri.nri.plugins import Plugins
from pvecri.observability import correlation, logs, metrics
from pvecri.oci import features
from pvecri.pods.hooks import Hooks
from pvecri.pods.manager import PodManager
from pvecri.proxmox.api import ProxmoxApi
from pvecri.reload import Live, Reloader
from pvecri.streaming.server import StreamingServer

if TYPE_CHECKING:
    from pvecri.observability.metrics_server import MetricsServer
    from pvecri.observability.probes import Check

log = logging.getLogger(__name__)


def run(config: Config, path: Path) -> None:
    """Serve until SIGTERM or SIGINT; pods and containers keep running afterwards.

    SIGHUP reads the configuration's files again, of which `path` is the main one.
    """
    logs.configure(config.log)
    libc.keep_little_memory()
    if sys.version_info < (3, 12):
        # The default of Python 3.12 and later; the older default starts a thread for every process.
        asyncio.set_child_watcher(asyncio.PidfdChildWatcher())
    asyncio.run(serve(config, path=path))


async def serve(config: Config, ready: asyncio.Event | None = None, path: Path = DEFAULT_PATH) -> None:
    """As `run`, in the running event loop; `ready` is set once the CRI is served."""
    signals = _Signals()
    manager = ServiceManager()
    as_read = config
    async with AsyncExitStack() as stack:
        await _start_tracing(config, stack)
        # Before anything is read: a second daemon would recover, and remove, the pods of the first.
        await lock(config, stack)
        found = await features.discover(config)
        proxmox = ProxmoxApi(config.proxmox, image_storage=config.images.template_storage)
        await proxmox.start()
        stack.push_async_callback(proxmox.close)
        config = await _place_images(config, proxmox)
        templates = proxmox.image_templates(config.images.pull_timeout)
        images = ImageManager(config, templates if config.images.template_storage else None)
        await images.start()
        stack.push_async_callback(images.close)
        network = NetworkManager(config.network)
        await network.start()
        stack.push_async_callback(network.close)
        plugins = Plugins(config.nri) if config.nri.enabled else None
        pods = PodManager(config, found, proxmox, images, network, plugins or Hooks())
        stack.push_async_callback(pods.close)
        await pods.start()
        if plugins is not None:
            stack.push_async_callback(plugins.close)
            # After recovery: plugins are synchronized with the pods and containers that run.
            await plugins.start(pods)
        streaming = StreamingServer(config.streaming)
        await streaming.start()
        stack.push_async_callback(streaming.close)
        if config.oci.enabled:
            fronts = RuntimeServer(config.oci.socket, pods.front_containers)
            await fronts.start()
            stack.push_async_callback(fronts.close)
        runtime = RuntimeService(config, pods, images, streaming)
        health = HealthService(pods.conditions)
        server = CriServer(config.runtime.socket, runtime, ImageService(images), health)
        metrics_server = await _serve_metrics(config, pods, server, stack)
        await server.start()
        stack.push_async_callback(server.close)
        # Closed before the server, which else waits its whole grace for the streams of events and of health.
        stack.callback(pods.events.close)
        stack.callback(health.close)
        log.info("serving the CRI on unix://%s", config.runtime.socket)
        pods.attend()
        if ready is not None:
            ready.set()
        live = _live(images, streaming, metrics_server)
        await _attend(signals, manager, Reloader(path, as_read, live))
        manager.stopping()
        log.info("stopping; pods and their containers keep running")


async def _attend(signals: _Signals, manager: ServiceManager, reloader: Reloader) -> None:
    """Until the daemon is to end, tell the service manager that it serves and its event loop runs, and reload."""
    manager.ready()
    manager.status("serving the CRI")
    while not signals.stop.is_set():
        with suppress(TimeoutError):
            async with asyncio.timeout(manager.watchdog_interval):
                await signals.changed.wait()
        manager.alive()
        signals.changed.clear()
        if signals.hangup:
            signals.hangup = False
            manager.reloading()
            reloader.reload()
            manager.ready()


def _live(images: ImageManager, streaming: StreamingServer, metrics_server: MetricsServer | None) -> list[Live]:
    """The settings that can change while the daemon runs."""

    def change_log(config: Config) -> bool:
        logs.configure(config.log)
        return True

    def change_images(config: Config) -> bool:
        images.reconfigure(config.images)
        return True

    return [
        Live(("log.level", "log.format"), change_log),
        Live(("images.pinned", "images.insecure_registries", "images.auth_file"), change_images),
        Live(
            ("streaming.tls_cert", "streaming.tls_key"),
            lambda config: streaming.renew_certificate(config.streaming),
        ),
        Live(
            ("metrics.tls_cert", "metrics.tls_key"),
            lambda config: metrics_server is not None and metrics_server.renew_certificate(config.metrics),
        ),
    ]


async def _start_tracing(config: Config, stack: AsyncExitStack) -> None:
    """Record traces until `stack` closes, if tracing.endpoint is set. ConfigError without the library."""
    if not config.tracing.endpoint:
        return
    try:
        from pvecri.observability.tracing import Tracing
    except ModuleNotFoundError as error:
        problem = f"the Python package of {error.name} is not installed (pip install '.[tracing]')"
        raise ConfigError(f"tracing.endpoint: {problem}") from error
    tracing = Tracing(config.tracing)
    stack.push_async_callback(tracing.close)
    correlation.record(tracing)
    stack.callback(correlation.record, None)
    log.info("sending traces to %s", config.tracing.endpoint)


async def _serve_metrics(
    config: Config, pods: PodManager, server: CriServer, stack: AsyncExitStack
) -> MetricsServer | None:
    """Serve the daemon's metrics and health until `stack` closes, if metrics.listen is set."""
    if not config.metrics.listen:
        return None
    # aiohttp's server takes more than a megabyte of memory.
    from pvecri.observability.metrics_server import MetricsServer
    from pvecri.observability.probes import Check

    metrics.BUILD_INFO.labels(pvecri.__version__).set(1)

    async def alive() -> list[Check]:
        # Nothing that a restart does not mend: Proxmox may be away for hours, and the pods go on.
        return [Check("ping"), Check("cri", server.failure)]

    async def ready() -> list[Check]:
        conditions = await pods.conditions()
        return await alive() + [
            Check(each.type, "" if each.met else each.reason, required=each.required) for each in conditions
        ]

    metrics_server = MetricsServer(config.metrics, pods.observe, alive=alive, ready=ready)
    await metrics_server.start()
    stack.push_async_callback(metrics_server.close)
    return metrics_server


async def _place_images(config: Config, proxmox: ProxmoxApi) -> Config:
    """The configuration with images.root set by images.storage; the last known place if Proxmox is unavailable."""
    storage = config.images.storage
    if not storage:
        return placement.placed(config, None)
    memory = placement.memory(config)
    try:
        found = await proxmox.storage_config(storage)
    except (Unavailable, DeadlineExceeded):
        known = memory.recall(storage)
        if known is None:
            raise
        return placement.placed(config, known)
    place = placement.StoragePlace(type=found.type, path=found.path, pool=found.pool)
    # For a start while Proxmox is away: pods must be adopted, and their images found, without it.
    memory.remember(storage, place)
    return placement.placed(config, place)


async def lock(config: Config, stack: AsyncExitStack) -> None:
    """Hold the state directory's exclusive lock until `stack` closes; ConfigError if another daemon holds it."""
    directory = config.runtime.state_dir
    directory.mkdir(mode=0o711, parents=True, exist_ok=True)
    # O_CLOEXEC: a conmon that inherited it would keep the lock after the daemon (flock(2)).
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    stack.callback(os.close, fd)
    if not await single_instance.lock(fd):
        raise ConfigError(f"runtime.state_dir: another pvecri uses {directory}")


class _Signals:
    """SIGTERM and SIGINT set `stop`, SIGHUP sets `hangup`, and all of them `changed`; also during the start."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.hangup = False
        self.changed = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)

    def _end(self) -> None:
        self.stop.set()
        self.changed.set()

    def _hang_up(self) -> None:
        self.hangup = True
        self.changed.set()
