# SPDX-License-Identifier: Apache-2.0
"""conmon and the OCI runtime, run in the PID namespace of a pod's CT.

They have the host's mount namespace, so that paths are the daemon's, but the CT's PID namespace, so that the
kernel kills everything with the CT. They need a /proc of that namespace: each run gets a copy of the mount table
in which only /proc is replaced, and whose other mounts keep their propagation.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pvecri.concurrency import finish, when_answered
from pvecri.errors import CommandError, DeadlineExceeded, FailedPrecondition, InternalError, InvalidArgument
from pvecri.linux import keyrings, processes, programs
from pvecri.linux.fds import Pipe, readable
from pvecri.model import ContainerId, Resources
from pvecri.observability import correlation
from pvecri.oci import messages, runtime_spec, spec_linux
from pvecri.oci.features import HostFeatures
from pvecri.oci.kill import kill_command
from pvecri.oci.pod_cgroups import PodCgroups
from pvecri.oci.spool import Spool

LARGE_RESULTS = 4
"""How many large outputs of ExecSync are in memory at once."""
log = logging.getLogger(__name__)

NO_LOG = f"--log={os.devnull}"
"""With a log, the OCI runtimes' stderr has the error alone, without warnings, times and quotes."""
COMMAND_TIMEOUT = 60.0
"""Seconds for `start`, `update` and `delete` of the OCI runtime."""
CHECKPOINT_TIMEOUT = 3600.0
"""CRIU writes all of the container's memory to the disk."""

# Enters the cgroups of the cgroup.procs files before `--`, then executes the command after it.
# 0 is the writing process itself. So conmon needs no _OCI_STARTPIPE, on which it would wait to be moved.
_ENTER_CGROUPS = 'until [ "$1" = -- ]; do echo 0 >"$1" || exit 125; shift; done; shift; exec "$@"'

# Messages of runc and crun if the command cannot be executed: the request's fault, not the node's.
_BAD_COMMAND = (
    "executable file not found",
    "no such file or directory",
    "permission denied",
    "not found in $PATH",
)


@dataclass(frozen=True)
class PodNamespaces:
    """How to reach a pod. `pid` is a path to its CT's PID namespace, None if its containers use the node's."""

    pid: Path | None
    cgroups: PodCgroups

    @property
    def depth(self) -> int:
        """The level of the PID namespace, below the node's, that conmon's pid files are relative to."""
        return 0 if self.pid is None else 1


@dataclass(frozen=True)
class Bundle:
    """An OCI bundle's directory, and the files of conmon in it."""

    directory: Path

    @property
    def spec(self) -> Path:
        """The OCI runtime spec."""
        return self.directory / "config.json"

    @property
    def pid_file(self) -> Path:
        """Written by conmon: the container's PID in the CT's PID namespace."""
        return self.directory / "pid"

    @property
    def conmon_pid_file(self) -> Path:
        """Written by conmon: its own PID in the CT's PID namespace."""
        return self.directory / "conmon.pid"

    @property
    def conmon_log(self) -> Path:
        """conmon's stderr; exists once a start of the container was attempted."""
        return self.directory / "conmon.log"

    @property
    def frozen_file(self) -> Path:
        """Exists while the daemon has the container frozen for a checkpoint."""
        return self.directory / "frozen"

    @property
    def oom_file(self) -> Path:
        """Created by conmon if the OOM killer killed a process of the container."""
        return self.directory / "oom"


@dataclass(frozen=True)
class Stdio:
    """The container's standard streams (CRI ContainerConfig.tty, stdin, stdin_once) and its log."""

    tty: bool = False
    stdin: bool = False
    stdin_once: bool = False
    log: Path | None = None
    log_size_max: int = -1


@dataclass(frozen=True)
class ExecResult:
    """The result of ExecSync; outputs are truncated to spool.OUTPUT_LIMIT."""

    exit_code: int
    stdout: bytes
    stderr: bytes


class OciRuntime:
    """Runs conmon and the OCI runtime. Methods may be called concurrently for different containers."""

    def __init__(
        self, features: HostFeatures, root: Path, exit_dir: Path, spool_dir: Path, create_timeout: float
    ) -> None:
        """`root` is the OCI runtime's --root, `exit_dir` conmon's --exit-dir; large outputs go to `spool_dir`.

        `create_timeout` is in seconds.
        """
        self._features = features
        self._program = features.oci_runtime.path
        self._root = root
        self._exit_dir = exit_dir
        self._spool_dir = spool_dir
        self._create_timeout = create_timeout
        self._large_results = asyncio.Semaphore(LARGE_RESULTS)

    async def create(self, pod: PodNamespaces, container: ContainerId, bundle: Bundle, stdio: Stdio) -> None:
        """Start conmon, which creates the container; its command does not run before `start`.

        InvalidArgument if the command cannot be executed, DeadlineExceeded after the create timeout, InternalError
        with the runtime's message otherwise; conmon has exited then, or was killed. A cancelled call is finished
        first: `delete` the container.
        """
        with correlation.span("OCI runtime create"):
            await finish(self._create(pod, container, bundle, stdio))

    async def _create(self, pod: PodNamespaces, container: ContainerId, bundle: Bundle, stdio: Stdio) -> None:
        cgroups, monitors = self._features.cgroups, pod.cgroups.monitors
        cgroups.make(monitors)
        reader, writer = os.pipe()
        try:
            arguments = [
                *_enter_namespaces(pod),
                *_enter_cgroups(cgroups.directories(monitors)),
                *self._conmon(container, bundle, stdio),
            ]
            with bundle.conmon_log.open("ab") as stderr:
                process = await keyrings.start(
                    *arguments,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=stderr,
                    cwd=bundle.directory,  # conmon creates `oom` in its cwd as well as in --persist-dir
                    pass_fds=(writer,),
                    env={**os.environ, "_OCI_SYNCPIPE": str(writer)},  # conmon answers there: see _check_sync
                )
            os.close(writer)  # else the pipe has no EOF if conmon dies
            writer = -1
            async with asyncio.timeout(self._create_timeout):
                answer = await _read_line(reader)
                await process.wait()  # conmon forks: this parent exits, the monitor stays
        except TimeoutError:
            # The OCI runtime is conmon's child; without conmon's end nothing would end it.
            self.kill_monitor(pod, container)
            processes.kill_tree(process.pid)  # conmon may not be in its cgroup yet
            raise self._not_created(container) from None
        finally:
            os.close(reader)
            if writer >= 0:
                os.close(writer)
        log.debug("conmon of container %s was started: process %d", container, process.pid)
        _check_sync(answer, bundle, self._features.oci_runtime.kind)

    async def run_detached(self, pod: PodNamespaces, container: ContainerId, bundle: Bundle) -> None:
        """Create and start a container without conmon: no exit code, no log.

        CommandError if the runtime fails, DeadlineExceeded after the create timeout.
        """
        with correlation.span("OCI runtime run"):
            await finish(self._run_detached(pod, container, bundle))

    async def _run_detached(self, pod: PodNamespaces, container: ContainerId, bundle: Bundle) -> None:
        options = ["--detach", "--bundle", str(bundle.directory), "--pid-file", str(bundle.pid_file)]
        options += ["--no-new-keyring"] * keyrings.SUPPORTED
        # To a file: the container's process inherits it, so that a pipe would not reach EOF before that exits.
        with bundle.conmon_log.open("w+b") as stderr:
            process = await keyrings.start(
                *_enter_namespaces(pod),
                *self._oci("run", *options, container),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=stderr,
            )
            try:
                async with asyncio.timeout(self._create_timeout):
                    status = await process.wait()
            except TimeoutError:
                processes.kill_tree(process.pid)
                raise self._not_created(container) from None
            if status:
                stderr.seek(0)
                errors = stderr.read(1 << 16).decode(errors="replace")
                name = f"{self._features.oci_runtime.kind} run {container}"
                raise CommandError(name, status, messages.last_error(errors))

    def _not_created(self, container: ContainerId) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"{self._features.oci_runtime.kind} did not create container {container} within "
            f"{self._create_timeout:g} s (runtime.create_timeout); it was killed"
        )

    async def start(self, pod: PodNamespaces, container: ContainerId) -> None:
        """Start a created container's command."""
        await self._run(pod, "start", container)

    async def update(self, pod: PodNamespaces, container: ContainerId, wanted: Resources) -> None:
        """Update a running container's limits; CommandError if the kernel refuses them."""
        limits = msgspec.json.encode(spec_linux.limits(wanted, self._features))
        await self._run(pod, "update", "--resources", "-", container, stdin=limits)

    async def checkpoint(self, pod: PodNamespaces, container: ContainerId, images: Path, work: Path) -> None:
        """Have CRIU dump a running container into the new directory `images`, and leave it running.

        FailedPrecondition if the OCI runtime was built without CRIU, CommandError with CRIU's message; its log is
        `work`/dump.log.
        """
        program = self._features.oci_runtime
        if not program.checkpoints:
            problem = f"{program.path} was built without CRIU; checkpoints need another one (runtime.oci_runtime)"
            raise FailedPrecondition(problem)
        # --file-locks: without it CRIU refuses a process that has locked a file.
        paths = ("--image-path", str(images), "--work-path", str(work))
        await self._run(
            pod, "checkpoint", *paths, "--leave-running", "--file-locks", container, timeout=CHECKPOINT_TIMEOUT
        )

    async def delete(self, pod: PodNamespaces | None, container: ContainerId) -> None:
        """Kill what is left of a container and delete the OCI runtime's state of it. Idempotent.

        `pod` is None if the pod's PID namespace, and with it every process of the container, is gone.
        """
        if not (self._root / container).exists():  # saves starting a program that has nothing to do
            return
        await self._run(pod, "delete", "--force", container)

    def kill_monitor(self, pod: PodNamespaces, container: ContainerId) -> None:
        """Kill a container's conmon and its descendants, after an interrupted start. Idempotent."""
        for monitor in self._features.cgroups.processes(pod.cgroups.monitors):
            if container in processes.command_line(monitor):  # `-c ID`; its pid file may not exist yet
                processes.kill_tree(monitor)

    def remove_state(self, container: ContainerId) -> None:
        """Remove the OCI runtime's state of a container that it fails to delete. Idempotent."""
        shutil.rmtree(self._root / container, ignore_errors=True)

    async def exec(
        self,
        pod: PodNamespaces,
        container: ContainerId,
        bundle: Bundle,
        command: list[str],
        timeout: float | None,
    ) -> ExecResult:
        """Run a command in a running container and wait for it.

        After `timeout` seconds its whole session is killed: DeadlineExceeded. If the command cannot be executed,
        the exit code is the OCI runtime's choice of 126 or 127, and stderr has its message.
        """
        arguments = self.exec_arguments(pod, container, bundle, command)
        with (
            Pipe() as stdout,
            Pipe() as stderr,
            Spool(self._spool_dir) as output,
            Spool(self._spool_dir) as errors,
        ):
            process = await self.start_exec(
                pod, container, arguments, asyncio.subprocess.DEVNULL, stdout.theirs, stderr.theirs
            )
            try:
                stdout.started()
                stderr.started()
                async with asyncio.timeout(timeout):
                    _, _, code = await asyncio.gather(
                        output.fill(stdout.ours), errors.fill(stderr.ours), process.wait()
                    )
            except TimeoutError:
                message = f"exec in container {container}: timeout of {timeout:g} s exceeded"
                raise DeadlineExceeded(message) from None
            finally:
                await self.kill_exec(pod, container, process)
            if output.large or errors.large:
                # An answer is in memory several times while it is sent.
                await self._large_results.acquire()
                when_answered(self._large_results.release)
            return ExecResult(code, output.read(), errors.read())

    def exec_arguments(
        self,
        pod: PodNamespaces,
        container: ContainerId,
        bundle: Bundle,
        command: list[str],
        *,
        tty: bool = False,
    ) -> list[str]:
        """The argv that executes a command in a running container; its exit code is the command's.

        With `tty` the command gets a pty, and this argv needs a controlling terminal as its standard streams,
        whose size the OCI runtime copies.
        """
        options = ["--tty"] * tty
        if self._features.oci_runtime.exec_ignores_cwd:
            options += ["--cwd", runtime_spec.working_directory(bundle.spec.read_bytes())]
        return [*_enter_namespaces(pod), *self._oci("exec", *options, container, *command)]

    async def start_exec(
        self,
        pod: PodNamespaces,
        container: ContainerId,
        arguments: list[str],
        stdin: int,
        stdout: int,
        stderr: int,
    ) -> asyncio.subprocess.Process:
        """Start a process of `exec_arguments` with these streams; if cancelled, `kill_exec` it."""
        starting = asyncio.ensure_future(keyrings.start(*arguments, stdin=stdin, stdout=stdout, stderr=stderr))
        try:
            # Shielded: a cancelled create_subprocess_exec kills nsenter alone, and its child lives on.
            process = await asyncio.shield(starting)
        except asyncio.CancelledError:
            await self.kill_exec(pod, container, await starting)
            raise
        log.debug("exec in container %s: process %d", container, process.pid)
        return process

    async def kill_exec(
        self, pod: PodNamespaces, container: ContainerId, process: asyncio.subprocess.Process
    ) -> None:
        """Kill a process of `exec_arguments` with the command's whole session, and wait for it. Idempotent.

        The command is a descendant of `process` at every stage of its start.
        """
        if process.returncode is None:
            await finish(kill_command(process, self._features.cgroups, pod.cgroups.container(container)))

    def reopen_log(self, bundle: Bundle) -> None:
        """Have conmon reopen the log file, after a rename; FailedPrecondition if conmon is gone."""
        _send_to_conmon(bundle, "2 0 0")

    def resize(self, bundle: Bundle, columns: int, rows: int) -> None:
        """Set the size of a container's terminal; FailedPrecondition if its conmon is gone."""
        _send_to_conmon(bundle, f"1 {rows} {columns}")

    def host_pid(self, pod: PodNamespaces, group: str, pid_file: Path) -> int:
        """The host PID of a process in a cgroup, whose PID in the CT's PID namespace is in `pid_file`.

        ProcessLookupError if there is none, OSError if the file cannot be read.
        """
        wanted = pid_file.read_text().strip()
        for pid in self._features.cgroups.each_process(group):
            if str(processes.pid_at(pid, pod.depth)) == wanted:
                return pid
        raise ProcessLookupError(f"no process {wanted} in cgroup {group}")

    def monitor_pid(self, pod: PodNamespaces, group: str, pid_file: Path, process: int) -> int:
        """As `host_pid`, of the conmon of a container whose first process has the host PID `process`."""
        # Its parent: the cgroup has the monitors of all the pod's containers.
        parent = processes.parent(process)
        found = str(processes.pid_at(parent, pod.depth)) == pid_file.read_text().strip()
        return parent if found else self.host_pid(pod, group, pid_file)

    async def _run(
        self, pod: PodNamespaces | None, *arguments: str, stdin: bytes = b"", timeout: float = COMMAND_TIMEOUT
    ) -> None:
        command = [*(_enter_namespaces(pod) if pod else ()), *self._oci(*arguments)]
        name = f"{self._features.oci_runtime.kind} {' '.join(arguments)}"
        with correlation.span(f"OCI runtime {arguments[0]}"):
            ended = await finish(programs.run(command, timeout=timeout, name=name, stdin=stdin))
        if ended.returncode:
            raise CommandError(name, ended.returncode, messages.last_error(ended.stderr))

    async def run(self, *arguments: str, stdin: bytes = b"") -> None:
        """Run a command of the OCI runtime in the node's PID namespace; CommandError, DeadlineExceeded."""
        await self._run(None, *arguments, stdin=stdin)

    def command(self, *arguments: str) -> list[str]:
        """The OCI runtime's command line for a program that reports its errors itself."""
        return [self._program, f"--root={self._root}", *arguments]

    def state_directory(self, container: ContainerId) -> Path:
        """The OCI runtime's record of a container."""
        return self._root / container

    def _oci(self, *arguments: str) -> list[str]:
        return [self._program, *self._global_options(), *arguments]

    def _global_options(self) -> list[str]:
        return [f"--root={self._root}", NO_LOG]

    def _conmon(self, container: ContainerId, bundle: Bundle, stdio: Stdio) -> list[str]:
        output = f"k8s-file:{stdio.log}" if stdio.log else "none"
        # Version 1 has the key `data` on the sync pipe for a PID and for an error (`pid` in version 0).
        arguments = [self._features.conmon, "--api-version", "1"]
        arguments += ["-c", container, "-u", container, "-n", container]
        # conmon's child, but in the daemon's cgroup: the CT's CPU quota would slow it down (decision 0074).
        own = self._features.cgroups.own_directory("cpu")
        program, *options = [*_enter_cgroups([own]), *self._oci()]
        arguments += ["-r", program, "-b", str(bundle.directory)]
        arguments += [f"--runtime-arg={option}" for option in options]
        arguments += ["-p", str(bundle.pid_file), "-P", str(bundle.conmon_pid_file)]
        arguments += ["--exit-dir", str(self._exit_dir), "--persist-dir", str(bundle.directory)]
        # Without --full-attach the attach socket is below --socket-dir-path, by a truncated path.
        arguments += ["-l", output, "--log-size-max", str(stdio.log_size_max), "--log-level", "info"]
        arguments += ["--full-attach"]
        arguments += ["--no-new-keyring"] * keyrings.SUPPORTED  # see linux/keyrings.py
        arguments += ["-t"] * stdio.tty + ["-i"] * stdio.stdin
        # By default conmon closes the container's stdin when an attached client goes: that is stdin_once.
        arguments += ["--leave-stdin-open"] * (stdio.stdin and not stdio.stdin_once)
        return arguments


def _enter_cgroups(directories: Iterable[Path]) -> list[str]:
    """An argv prefix that runs a command in the cgroups with these directories, one in each tree."""
    return ["/bin/sh", "-c", _ENTER_CGROUPS, "sh", *(str(each / "cgroup.procs") for each in directories), "--"]


def _enter_namespaces(pod: PodNamespaces) -> list[str]:
    if pod.pid is None:
        return []
    # setns(2) of a PID namespace applies to children only: nsenter forks. --propagation=unchanged: by default
    # unshare(1) makes all mounts private, and volumes with mount propagation would not propagate.
    return ["nsenter", f"--pid={pod.pid}", "unshare", "--mount", "--propagation=unchanged", "--mount-proc", "--"]


def _send_to_conmon(bundle: Bundle, message: str) -> None:
    try:
        # O_NONBLOCK: without a reader open(2) of a FIFO fails with ENXIO instead of waiting for one.
        # conmon's control messages: `1 ROWS COLUMNS` resizes the terminal, `2 0 0` opens the log again.
        control = os.open(bundle.directory / "ctl", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise FailedPrecondition(f"{bundle.directory.name}: no conmon is listening: {error.strerror}") from error
    try:
        os.write(control, f"{message}\n".encode())
    finally:
        os.close(control)


def _check_sync(answer: bytes, bundle: Bundle, runtime: str) -> None:
    """conmon writes {"data": PID} or {"data": -1, "message": TEXT} to its sync pipe."""
    try:
        document = json.loads(answer)
        pid, message = int(document["data"]), str(document.get("message", "")).strip()
    except (ValueError, KeyError, TypeError):
        problem = messages.last_error(bundle.conmon_log.read_text(errors="replace")[-2000:]) or "no output"
        raise InternalError(
            f"conmon could not create the container: {problem} (its log is {bundle.conmon_log})"
        ) from None
    if pid > 0:
        return
    problem = messages.last_error(message) or "no reason given"
    if "exec:" in message and any(text in message for text in _BAD_COMMAND):
        raise InvalidArgument("config.command", problem)
    raise InternalError(f"{runtime} could not create the container: {problem} (its spec is {bundle.spec})")


async def _read_line(fd: int) -> bytes:
    """Read a pipe to a newline or EOF."""
    os.set_blocking(fd, False)
    collected = b""
    while not collected.endswith(b"\n"):
        await readable(fd)
        chunk = os.read(fd, 1 << 16)
        if not chunk:
            break
        collected += chunk
    return collected
