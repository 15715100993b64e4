# SPDX-License-Identifier: Apache-2.0
"""Running OCI containers inside a pod's CT: conmon and the OCI runtime, in the CT's pid namespace.

Both programs run in the host's mount namespace, so that paths mean what they mean to us, but in the pid
namespace of the CT, so that everything dies with the CT. They need a /proc of that pid namespace: each run gets
a private copy of the mount table in which only /proc is replaced; all else keeps propagating.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pvecri.concurrency import finish
from pvecri.errors import CommandError, DeadlineExceeded, FailedPrecondition, InternalError, InvalidArgument
from pvecri.linux import keyrings, processes, programs
from pvecri.linux.cgroups import Cgroups
from pvecri.linux.fds import AsyncFd, Pipe
from pvecri.model import ContainerId, Resources
from pvecri.oci import spec, spec_linux
from pvecri.oci.abilities import Abilities
from pvecri.oci.killing import kill_command

EXEC_OUTPUT_LIMIT = 16 << 20
"""Bytes of each of stdout and stderr that ExecSync returns, as CRI-O and containerd have it."""
COMMAND_TIMEOUT = 60.0
"""Seconds for `start`, `update` and `delete` of the OCI runtime."""
CHECKPOINT_TIMEOUT = 3600.0
"""CRIU writes all of the container's memory to the disk."""

# Enters the cgroups whose cgroup.procs files come first, then becomes the command behind `--`.
_ENTER_CGROUPS = 'until [ "$1" = -- ]; do echo 0 >"$1" || exit 125; shift; done; shift; exec "$@"'

# What the OCI runtimes say when the command itself is at fault, rather than the machine.
_BAD_COMMAND = (
    "executable file not found",
    "no such file or directory",
    "permission denied",
    "not found in $PATH",
)


@dataclass(frozen=True)
class PodNamespaces:
    """How to reach a pod. `pid` is a path to its CT's PID namespace, None if its containers use the node's.

    `cgroup` is the group for the pod's monitors: in the CT's own, so that they share its limits and its end.
    """

    pid: Path | None
    cgroup: str

    @property
    def depth(self) -> int:
        """How many levels below the node's the PID namespace is that conmon's pid files count in."""
        return 0 if self.pid is None else 1

    def container_cgroup(self, container: ContainerId) -> str:
        """A container's group: beside that of the monitors."""
        return f"{Path(self.cgroup).parent}/{container}"


@dataclass(frozen=True)
class Bundle:
    """An OCI bundle's directory and what lies in it."""

    directory: Path

    @property
    def spec(self) -> Path:
        """The OCI spec."""
        return self.directory / "config.json"

    @property
    def pid_file(self) -> Path:
        """Written by conmon: the container's first process, as the CT numbers it."""
        return self.directory / "pid"

    @property
    def conmon_pid_file(self) -> Path:
        """Written by conmon: its own number in the CT."""
        return self.directory / "conmon.pid"

    @property
    def conmon_log(self) -> Path:
        """What conmon says; it is there once a start of the container was begun."""
        return self.directory / "conmon.log"

    @property
    def oom_file(self) -> Path:
        """Made by conmon when the kernel killed a process of the container for want of memory."""
        return self.directory / "oom"


@dataclass(frozen=True)
class Stdio:
    """How the container's standard streams are set up (CRI ContainerConfig.tty, stdin, stdin_once)."""

    tty: bool = False
    stdin: bool = False
    stdin_once: bool = False
    log: Path | None = None
    log_size_max: int = -1


@dataclass(frozen=True)
class ExecResult:
    """How a command in a container ended, and what it wrote."""

    exit_code: int
    stdout: bytes
    stderr: bytes


class OciRuntime:
    """One per daemon. Every method can run for many containers at once."""

    def __init__(self, abilities: Abilities, root: Path, exit_dir: Path) -> None:
        """`root` is the OCI runtime's state directory, `exit_dir` where conmon writes exit codes."""
        self._abilities = abilities
        self._program = abilities.oci_runtime.path
        self._root = root
        self._exit_dir = exit_dir

    async def create(self, pod: PodNamespaces, container: ContainerId, bundle: Bundle, stdio: Stdio) -> None:
        """Start conmon, which makes the container: all is set up, its command does not run yet.

        InvalidArgument when the command cannot be executed, InternalError with the runtime's words otherwise;
        conmon has ended then. A cancelled call has made the container all the same: `delete` it.
        """
        await finish(self._create(pod, container, bundle, stdio))

    async def _create(self, pod: PodNamespaces, container: ContainerId, bundle: Bundle, stdio: Stdio) -> None:
        reader, writer = os.pipe()
        try:
            arguments = [
                *enter_cgroup(self._abilities.cgroups, pod.cgroup),
                *_enter(pod),
                *self._conmon(container, bundle, stdio),
            ]
            with bundle.conmon_log.open("ab") as log:
                process = await keyrings.start(
                    *arguments,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=log,
                    cwd=bundle.directory,  # where conmon writes of an OOM kill, besides the directory it is told
                    pass_fds=(writer,),
                    env={**os.environ, "_OCI_SYNCPIPE": str(writer)},
                )
            os.close(writer)
            writer = -1
            answer = await _read_line(reader)
            await process.wait()
        finally:
            os.close(reader)
            if writer >= 0:
                os.close(writer)
        _check_answer(answer, bundle)

    async def run_detached(self, pod: PodNamespaces, container: ContainerId, bundle: Bundle) -> None:
        """Make a container and let its command run, without a conmon: nobody waits for its end or reads its
        output.

        CommandError with the OCI runtime's message.
        """
        await finish(self._run_detached(pod, container, bundle))

    async def _run_detached(self, pod: PodNamespaces, container: ContainerId, bundle: Bundle) -> None:
        options = ["--detach", "--bundle", str(bundle.directory), "--pid-file", str(bundle.pid_file)]
        options += ["--no-new-keyring"] * keyrings.SUPPORTED
        # To a file: its command inherits the stream, so that the end of a pipe would come with the command's own.
        with bundle.conmon_log.open("w+b") as log:
            process = await keyrings.start(
                *_enter(pod),
                *self._oci("run", *options, container),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=log,
            )
            status = await process.wait()
            if status:
                log.seek(0)
                errors = log.read(1 << 16).decode(errors="replace")
                raise CommandError(f"{self._abilities.oci_runtime.kind} run {container}", status, errors)

    async def start(self, pod: PodNamespaces, container: ContainerId) -> None:
        """Let the container's command run; its container was created."""
        await self._run(pod, "start", container)

    async def update(self, pod: PodNamespaces, container: ContainerId, wanted: Resources) -> None:
        """Change a running container's limits; CommandError when the kernel does not take them."""
        limits = json.dumps(spec_linux.limits(wanted, self._abilities)).encode()
        await self._run(pod, "update", "--resources", "-", container, stdin=limits)

    async def checkpoint(self, pod: PodNamespaces, container: ContainerId, images: Path, work: Path) -> None:
        """Have CRIU write a running container's state into the new directory `images`; it goes on running.

        CommandError with CRIU's words, which `work`/dump.log has in full.
        """
        paths = ("--image-path", str(images), "--work-path", str(work))
        await self._run(
            pod, "checkpoint", *paths, "--leave-running", "--file-locks", container, timeout=CHECKPOINT_TIMEOUT
        )

    async def delete(self, pod: PodNamespaces | None, container: ContainerId) -> None:
        """Remove what the OCI runtime keeps of a container, killing what is left of it. Idempotent.

        `pod` is None when the pod's pid namespace is gone, and with it every process of the container.
        """
        if not (self._root / container).exists():
            return
        await self._run(pod, "delete", "--force", container)

    def abandon(self, pod: PodNamespaces, container: ContainerId) -> None:
        """Kill the conmon of a container whose start nobody waits for any more, and what it began. Idempotent."""
        for monitor in self._abilities.cgroups.processes(pod.cgroup):
            if container in processes.command_line(monitor):
                for pid in processes.stop_tree(monitor):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    def forget(self, container: ContainerId) -> None:
        """Drop what the OCI runtime keeps of a container that it cannot delete itself. Idempotent."""
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

        After `timeout` seconds its whole session is killed: DeadlineExceeded. A command that cannot be executed
        ends as a shell would have it: 126 or 127 is the OCI runtime's choice, with its words on stderr.
        """
        arguments = self.exec_arguments(pod, container, bundle, command)
        with Pipe() as stdout, Pipe() as stderr:
            process = await keyrings.start(
                *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=stdout.theirs, stderr=stderr.theirs
            )
            try:
                stdout.started()
                stderr.started()
                async with asyncio.timeout(timeout):
                    written, complained, code = await asyncio.gather(
                        _drain(stdout.ours), _drain(stderr.ours), process.wait()
                    )
            except TimeoutError:
                message = f"exec in container {container}: timeout of {timeout:g} s exceeded"
                raise DeadlineExceeded(message) from None
            finally:
                await self.kill_exec(pod, container, process)
        return ExecResult(code, written, complained)

    def exec_arguments(
        self,
        pod: PodNamespaces,
        container: ContainerId,
        bundle: Bundle,
        command: list[str],
        *,
        tty: bool = False,
    ) -> list[str]:
        """What runs a command in a running container; it ends as the command does.

        With `tty` the command gets a terminal of its own, and what runs it must have one as its standard streams
        and its controlling terminal: the size of the one becomes the other's.
        """
        options = ["--tty"] * tty
        if self._abilities.oci_runtime.executes_at_the_root:
            options += ["--cwd", spec.working_dir(bundle.spec.read_bytes())]
        return [*_enter(pod), *self._oci("exec", *options, container, *command)]

    async def kill_exec(
        self, pod: PodNamespaces, container: ContainerId, process: asyncio.subprocess.Process
    ) -> None:
        """Kill what `exec_arguments` began, when it has not ended, with all of the command's session; wait for it.

        The command descends from `process`, wherever in its start it is.
        """
        if process.returncode is None:
            await finish(kill_command(process, self._abilities.cgroups, pod.container_cgroup(container)))

    def reopen_log(self, bundle: Bundle) -> None:
        """Tell conmon to open the log file anew (after it was renamed); FailedPrecondition when it is gone."""
        _tell_conmon(bundle, "2 0 0")

    def resize(self, bundle: Bundle, columns: int, rows: int) -> None:
        """Set the size of a container's terminal; FailedPrecondition when its conmon is gone."""
        _tell_conmon(bundle, f"1 {rows} {columns}")

    def host_pid(self, pod: PodNamespaces, group: str, pid_file: Path) -> int:
        """The host's number of a process in a cgroup, by the number in the pod that a file holds.

        ProcessLookupError when it is not there, OSError or ValueError when the file says nothing.
        """
        wanted = pid_file.read_text().strip()
        for pid in self._abilities.cgroups.processes(group):
            numbers = processes.status(pid).get("NSpid", "").split()  # one a level, the host's first
            if len(numbers) > pod.depth and numbers[pod.depth] == wanted:
                return pid
        raise ProcessLookupError(f"no process {wanted} in cgroup {group}")

    async def _run(
        self, pod: PodNamespaces | None, *arguments: str, stdin: bytes = b"", timeout: float = COMMAND_TIMEOUT
    ) -> None:
        command = [*(_enter(pod) if pod else ()), *self._oci(*arguments)]
        name = f"{self._abilities.oci_runtime.kind} {' '.join(arguments)}"
        (await finish(programs.run(command, timeout=timeout, name=name, stdin=stdin))).checked()

    def _oci(self, *arguments: str) -> list[str]:
        return [self._program, f"--root={self._root}", *arguments]

    def _conmon(self, container: ContainerId, bundle: Bundle, stdio: Stdio) -> list[str]:
        log = f"k8s-file:{stdio.log}" if stdio.log else "none"
        arguments = [
            self._abilities.conmon,
            "--api-version",
            "1",
            "-c",
            container,
            "-u",
            container,
            "-n",
            container,
        ]
        arguments += ["-r", self._program, f"--runtime-arg=--root={self._root}", "-b", str(bundle.directory)]
        arguments += ["-p", str(bundle.pid_file), "-P", str(bundle.conmon_pid_file)]
        arguments += ["--exit-dir", str(self._exit_dir), "--persist-dir", str(bundle.directory)]
        arguments += ["-l", log, "--log-size-max", str(stdio.log_size_max), "--log-level", "info", "--full-attach"]
        arguments += ["--no-new-keyring"] * keyrings.SUPPORTED
        arguments += ["-t"] * stdio.tty + ["-i"] * stdio.stdin
        arguments += ["--leave-stdin-open"] * (stdio.stdin and not stdio.stdin_once)
        return arguments


def enter_cgroup(cgroups: Cgroups, group: str) -> list[str]:
    """The beginning of a command whose process, and all it forks, shall be in a cgroup; the group is made."""
    cgroups.make(group)
    files = [str(directory / "cgroup.procs") for directory in cgroups.directories(group)]
    return ["/bin/sh", "-c", _ENTER_CGROUPS, "sh", *files, "--"]


def _enter(pod: PodNamespaces) -> list[str]:
    if pod.pid is None:
        return []
    return ["nsenter", f"--pid={pod.pid}", "unshare", "--mount", "--propagation=unchanged", "--mount-proc", "--"]


def _tell_conmon(bundle: Bundle, message: str) -> None:
    try:
        control = os.open(bundle.directory / "ctl", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise FailedPrecondition(f"{bundle.directory.name}: no conmon is listening: {error.strerror}") from error
    try:
        os.write(control, f"{message}\n".encode())
    finally:
        os.close(control)


def _check_answer(answer: bytes, bundle: Bundle) -> None:
    """Conmon answers {"data": PID} or {"data": -1, "message": TEXT}."""
    try:
        document = json.loads(answer)
        pid, message = int(document["data"]), str(document.get("message", "")).strip()
    except (ValueError, KeyError, TypeError):
        said = bundle.conmon_log.read_text(errors="replace")[-2000:].strip()
        raise InternalError(f"conmon ended before the container was made: {said or 'no output'}") from None
    if pid > 0:
        return
    if "exec:" in message and any(words in message for words in _BAD_COMMAND):
        raise InvalidArgument("config.command", message)
    raise InternalError(f"the OCI runtime could not create the container: {message}")


async def _read_line(fd: int) -> bytes:
    """Read from a pipe until a line's end or its close."""
    loop = asyncio.get_running_loop()
    os.set_blocking(fd, False)
    collected = b""
    while not collected.endswith(b"\n"):
        readable = asyncio.Event()
        loop.add_reader(fd, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(fd)
        chunk = os.read(fd, 1 << 16)
        if not chunk:
            break
        collected += chunk
    return collected


async def _drain(stream: AsyncFd) -> bytes:
    """All that a pipe gives, of which the first EXEC_OUTPUT_LIMIT bytes are kept."""
    kept = bytearray()
    while chunk := await stream.read(1 << 16):
        kept += chunk[: EXEC_OUTPUT_LIMIT - len(kept)]
    return bytes(kept)
