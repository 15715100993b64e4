# SPDX-License-Identifier: AGPL-3.0-or-later
"""A CT's monitor process: ``lxc-start -F``, one a running CT, as Proxmox runs it in a systemd unit.

It is a session of its own and outlives the API process. Its root filesystem is mounted in a mount namespace
that only the monitor has, so that nothing is left on the host when it ends, however it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pvecri_embedded.lxc import command_socket, hooks, mounts
from pvecri_embedded.lxc.cgroup import CgroupTree
from pvecri_embedded.lxc.command_socket import LxcState

LXC_START = "/usr/bin/lxc-start"
START_TIMEOUT_S = 10.0
"""How long Proxmox waits for a started CT to run."""
_POLL_S = 0.001
_logger = logging.getLogger(__name__)


class StartFailed(Exception):
    """The monitor ended, or did not reach RUNNING in time."""


@dataclass(frozen=True)
class Mount:
    """What to mount in a CT's root: a directory to bind, or an image file with an ext4 filesystem."""

    source: Path
    root: Path
    inside: str = ""
    """Where in the root, empty for the root itself. Made, owned by ``owner``, where it is missing."""
    owner: int = 0
    read_only: bool = False

    def perform(self) -> None:
        """Mount it in the calling thread's mount namespace. Raises OSError."""
        with _directory_in(self.root, self.inside, self.owner) as target:
            if self.source.is_dir():
                mounts.bind(self.source, target)
            else:
                mounts.mount_image(self.source, target)
        if self.read_only:
            # Opened again: the first descriptor is of the directory that the mount now covers.
            with _directory_in(self.root, self.inside, self.owner) as mounted:
                mounts.remount_read_only(mounted)


@contextlib.contextmanager
def _directory_in(root: Path, inside: str, owner: int) -> Iterator[Path]:
    """A path to a directory of a CT's root by which none of the CT's own symlinks is followed."""
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in filter(None, inside.split("/")):
            if name in {".", ".."}:
                raise OSError(errno.EINVAL, "mount point leads elsewhere", inside)
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=directory)
                os.chown(name, owner, owner, dir_fd=directory, follow_symlinks=False)
            flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            below = os.open(name, flags, dir_fd=directory)
            os.close(directory)
            directory = below
        yield Path(f"/proc/self/fd/{directory}")
    finally:
        os.close(directory)


class Monitor:
    """A running lxc-start, started here or found running."""

    def __init__(self, pid: int, vmid: int, lxc_path: Path, cgroups: CgroupTree, *, own_child: bool) -> None:
        self.pid = pid
        self.init_pid: int | None = None
        self._vmid = vmid
        self._lxc_dir = lxc_path / str(vmid)
        self._cgroups = cgroups
        self._own_child = own_child
        self._pidfd = os.pidfd_open(pid)
        self._ended = asyncio.Event()
        self._watchers: list[Callable[[], None]] = []
        asyncio.get_running_loop().add_reader(self._pidfd, self._on_end)

    @classmethod
    async def start(
        cls, vmid: int, lxc_path: Path, cgroups: CgroupTree, mount_plan: list[Mount], stderr: Path
    ) -> Monitor:
        """Start the CT's monitor and return when its init runs. Raises StartFailed."""
        pid = await _in_thread_of_its_own(lambda: _spawn(vmid, lxc_path, mount_plan, stderr))
        monitor = cls(pid, vmid, lxc_path, cgroups, own_child=True)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await monitor._wait_running()
        except BaseException:
            monitor.kill()
            await monitor.ended()
            raise
        return monitor

    @classmethod
    def adopt(cls, vmid: int, lxc_path: Path, cgroups: CgroupTree) -> Monitor | None:
        """The monitor that runs for the CT since before this process, or None."""
        lxc_dir = lxc_path / str(vmid)
        pid, init_pid = command_socket.monitor_pid(lxc_dir), command_socket.init_pid(lxc_dir)
        if pid is None or init_pid is None:
            return None
        try:
            monitor = cls(pid, vmid, lxc_path, cgroups, own_child=False)
        except ProcessLookupError:
            return None
        monitor.init_pid = init_pid
        return monitor

    def on_end(self, watcher: Callable[[], None]) -> None:
        """Call ``watcher`` in the event loop when the CT has ended; at once if it has."""
        if self._ended.is_set():
            watcher()
        else:
            self._watchers.append(watcher)

    async def ended(self) -> None:
        """Return when the monitor has ended: the CT's processes and its cgroups are gone then."""
        await self._ended.wait()

    def current_init_pid(self) -> int | None:
        """The pid of init as the host sees it. It changes when the CT reboots itself."""
        if self.init_pid is not None and not Path(f"/proc/{self.init_pid}").exists():
            self.init_pid = command_socket.init_pid(self._lxc_dir)
        return self.init_pid

    def signal_init(self, number: signal.Signals) -> None:
        """Send a signal to the CT's init. Nothing happens if it is gone."""
        pid = self.current_init_pid()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """Kill init, and with it every process of the CT; before init exists, the monitor."""
        init = self.current_init_pid() or command_socket.init_pid(self._lxc_dir)
        with contextlib.suppress(ProcessLookupError):
            os.kill(init or self.pid, signal.SIGKILL)

    def forget(self) -> None:
        """Stop watching; the CT goes on."""
        if not self._ended.is_set():
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)

    async def _wait_running(self) -> None:
        # An abstract socket cannot be watched for, so ask until it is there; this takes some milliseconds.
        while await asyncio.to_thread(command_socket.state, self._lxc_dir) is not LxcState.RUNNING:
            await self._pause_unless_ended()
        self.init_pid = command_socket.init_pid(self._lxc_dir)
        # LXC says RUNNING just before the new init's exec, which may still fail.
        while self.init_pid is None or _executable(self.init_pid) in (None, _executable(self.pid)):
            await self._pause_unless_ended()

    async def _pause_unless_ended(self) -> None:
        if self._ended.is_set():
            raise StartFailed
        await asyncio.sleep(_POLL_S)

    def _on_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        if self._own_child:
            os.waitpid(self.pid, 0)
        if self._cgroups.exists(self._vmid):
            # It was killed: the CT must die with it, which LXC alone does not see to.
            self._sweeping = asyncio.create_task(self._sweep())
        else:
            self._finish()

    async def _sweep(self) -> None:
        try:
            await asyncio.to_thread(self._cgroups.sweep, self._vmid)
        except TimeoutError:
            _logger.exception("CT %d has no monitor and does not end", self._vmid)
        await asyncio.to_thread(hooks.run_post_stop, self._lxc_dir / hooks.DIRECTORY)
        self._finish()

    def _finish(self) -> None:
        self._ended.set()
        for watcher in self._watchers:
            watcher()


def _executable(pid: int) -> tuple[int, int] | None:
    """Which file the process runs, None when it is gone."""
    try:
        status = Path(f"/proc/{pid}/exe").stat()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return status.st_dev, status.st_ino


def _spawn(vmid: int, lxc_path: Path, mount_plan: list[Mount], stderr: Path) -> int:
    """Start lxc-start with the mounts in a mount namespace of its own: that of the calling thread."""
    mounts.unshare_mounts()
    for item in mount_plan:
        item.perform()
    arguments = [LXC_START, "-F", "-P", str(lxc_path), "-n", str(vmid)]
    # No PATH: with newuidmap out of sight LXC, being root, writes the id maps itself. That needs no entry in
    # /etc/subuid and saves two processes.
    return os.posix_spawn(
        LXC_START,
        arguments,
        {},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_RDWR, 0),
            (os.POSIX_SPAWN_OPEN, 2, str(stderr), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644),
        ],
        setsid=True,
        # Blocked and ignored signals survive execve(2), and Python ignores SIGPIPE.
        setsigmask=[],
        setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGPIPE],
    )


async def _in_thread_of_its_own(function: Callable[[], int]) -> int:
    """Run ``function`` in a new thread that ends with it: its namespaces must not leak into a pool."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[int] = loop.create_future()

    def run() -> None:
        try:
            value = function()
        except BaseException as error:
            loop.call_soon_threadsafe(_settle, future, None, error)
        else:
            loop.call_soon_threadsafe(_settle, future, value, None)

    threading.Thread(target=run, name="lxc-start").start()
    # A thread cannot be cancelled.
    return await asyncio.shield(future)


def _settle(future: asyncio.Future[int], value: int | None, error: BaseException | None) -> None:
    if future.cancelled():
        return
    if error is not None:
        future.set_exception(error)
    elif value is not None:
        future.set_result(value)
