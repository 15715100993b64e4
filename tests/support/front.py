# SPDX-License-Identifier: Apache-2.0
"""What CRI-O, containerd and podman do with an OCI runtime: bundles, and calls of the real pvecri-runtime."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import leaks
from support.cri_client import TIMEOUT, eventually
from support.daemon import Machine
from support.processes import SOURCES
from support.tools import tools_layer

from pvecri.linux import cgroups, mounts

_ROOT = Path(__file__).resolve().parents[2]
CGROUP = f"/{leaks.PREFIX}front-{os.getpid()}"
"""The parent of the cgroups that a front would have for its containers."""

_CAPABILITIES = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_SETGID", "CAP_SETUID"]
PATH = "PATH=/bin:/usr/bin:/sbin:/usr/sbin"
_numbers = itertools.count(1)
_MOUNTS = [
    {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"]},
    {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"]},
]


def build_runtime(directory: Path) -> Path:
    """pvecri-runtime, built from this checkout."""
    command = ["make", "-s", "-C", str(_ROOT / "runtime"), f"BUILD={directory}", f"{directory}/pvecri-runtime"]
    subprocess.run(command, check=True)
    return directory / "pvecri-runtime"


# -- what fronts write ------------------------------------------------------------------------------------------


def oci_spec(*command: str, **changes: Any) -> dict[str, Any]:
    """A runtime spec with namespaces of its own; `changes` replace entries, those of `linux` one by one."""
    linux = {
        "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")],
        "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        **changes.pop("linux", {}),
    }
    return {
        "ociVersion": "1.0.2",
        "process": process(*command),
        "root": {"path": "rootfs"},
        "hostname": "front",
        "mounts": _MOUNTS,
        **changes,
        "linux": linux,
    }


def process(*command: str, **changes: Any) -> dict[str, Any]:
    """A spec's `process`, as it is in the file of `exec --process`, too."""
    sets = ("bounding", "effective", "permitted")
    return {
        "user": {"uid": 0, "gid": 0},
        "args": list(command),
        "env": [PATH],
        "cwd": "/",
        "capabilities": dict.fromkeys(sets, _CAPABILITIES),
        **changes,
    }


def namespaces(**paths: str) -> list[dict[str, str]]:
    """`linux.namespaces`: a mount namespace and those of `paths`, where an empty path is a new one."""
    return [
        {"type": "mount"},
        *({"type": kind, **({"path": path} if path else {})} for kind, path in paths.items()),
    ]


def crio_annotations(sandbox: str, name: str = "", **more: str) -> dict[str, str]:
    """CRI-O's annotations of a sandbox, or of its container `name`; `more` without their prefix."""
    pod = f"pod-{sandbox[:6]}"
    labels = {f"io.kubernetes.pod.{key}": value for key, value in (("name", pod), ("namespace", "tests"))}
    annotations = {
        "ContainerType": "container" if name else "sandbox",
        "SandboxID": sandbox,
        "SandboxName": f"k8s_{pod}_tests_uid-{sandbox[:6]}_0",
        "Metadata": json.dumps({"name": name or pod, "attempt": 0}),
        "Labels": json.dumps({**labels, **({"io.kubernetes.container.name": name} if name else {})}),
        "Annotations": json.dumps({"note": "of the pod"}),
        "ImageName": "tests/tools:1",
        **more,
    }
    return {f"io.kubernetes.cri-o.{key}": value for key, value in annotations.items()}


def containerd_annotations(sandbox: str, name: str = "", **more: str) -> dict[str, str]:
    """containerd's annotations of a sandbox, or of its container `name`; `more` without their prefix."""
    annotations = {
        "container-type": "container" if name else "sandbox",
        "sandbox-id": sandbox,
        "sandbox-name": f"pod-{sandbox[:6]}",
        "sandbox-namespace": "tests",
        "sandbox-uid": f"uid-{sandbox[:6]}",
        **({"container-name": name, "image-name": "tests/tools:1"} if name else {}),
        **more,
    }
    return {f"io.kubernetes.cri.{key}": value for key, value in annotations.items()}


# -- what fronts call -------------------------------------------------------------------------------------------


class Stream:
    """The read end of a pipe or of a pty."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._text = b""
        self._ended = False

    def read(self) -> str:
        """All that has come, once the end has."""
        deadline = time.monotonic() + TIMEOUT
        while not self._ended:
            self._read(deadline)
        return self._text.decode()

    def wait_for(self, text: str, count: int = 1) -> str:
        """All that has come, once the text has, so many times."""
        deadline = time.monotonic() + TIMEOUT
        while self._text.count(text.encode()) < count:
            assert not self._ended, f"no {text!r} in {self._text!r}"
            self._read(deadline)
        return self._text.decode()

    def _read(self, deadline: float) -> None:
        ready, _, _ = select.select([self.descriptor], [], [], max(0, deadline - time.monotonic()))
        assert ready, f"neither the text nor the end came after {self._text!r}"
        try:
            data = os.read(self.descriptor, 65536)
        except OSError as error:
            if error.errno != errno.EIO:  # a pty's master after the last close of its slave
                raise
            data = b""
        self._text += data
        self._ended = not data


@dataclass(frozen=True)
class Called:
    """A call by a process of support/oci_caller.py, and the streams of what was started."""

    caller: subprocess.Popen[bytes]
    report: Stream
    stdin: int
    stdout: Stream
    stderr: Stream
    pid_file: Path

    @property
    def status(self) -> int:
        """The exit status of pvecri-runtime."""
        return int(self.report.wait_for("\n").split("\n")[0])

    @property
    def pid(self) -> int:
        """The PID that it wrote; it must have been a success."""
        assert self.status == 0, self.stderr.read()
        return int(self.pid_file.read_text())

    def wait(self) -> int:
        """How the process with that PID has ended, as subprocess has it."""
        assert self.status == 0, self.stderr.read()
        return int(self.report.wait_for("\n", 2).split("\n")[1])

    def kill(self) -> None:
        """End the caller, as a crash does."""
        self.caller.kill()
        self.caller.wait()


class Front:
    """A client of pvecri-runtime with bundles and an own --root; a context of `front` ends what it made."""

    def __init__(self, machine: Machine, program: Path, directory: Path, undo: ExitStack) -> None:
        self.machine = machine
        self.program = program
        self.directory = directory
        self.root = str(directory / "root")
        self._undo = undo
        self._rootfs = directory / "rootfs"
        self._rootfs.mkdir()
        with tarfile.open(fileobj=io.BytesIO(tools_layer())) as tar:
            tar.extractall(self._rootfs, filter="fully_trusted")
        for name in ("proc", "dev", "sys"):
            (self._rootfs / name).mkdir()

    # -- bundles ----------------------------------------------------------------------------------------------

    def bundle(self, name: str, spec: Mapping[str, Any]) -> Path:
        """A bundle of that name, with a root filesystem of its own."""
        bundle = self.directory / "bundles" / name
        bundle.mkdir(parents=True, exist_ok=True)
        if not (bundle / "rootfs").exists():
            shutil.copytree(self._rootfs, bundle / "rootfs", symlinks=True)
        (bundle / "config.json").write_text(json.dumps(spec))
        return bundle

    # -- calls ------------------------------------------------------------------------------------------------

    def command(self, *arguments: str) -> list[str]:
        """The command line, as CRI-O's is."""
        return [str(self.program), "--socket", str(self.machine.runtime_socket), "--root", self.root, *arguments]

    def wrapper(self) -> Path:
        """The program for a front that cannot pass --socket."""
        path = self.directory / "pvecri-runtime"
        path.write_text(f'#!/bin/sh\nexec {self.program} --socket {self.machine.runtime_socket} "$@"\n')
        path.chmod(0o755)
        return path

    def call(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """One command to its end, without conmon; `options` as subprocess.run has them."""
        options = {"stdin": subprocess.DEVNULL, **options} if "input" not in options else options
        command = self.command(*arguments)
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT, **options)

    def succeed(self, *arguments: str, **options: Any) -> str:
        """The standard output of a command that must succeed."""
        run = self.call(*arguments, **options)
        assert run.returncode == 0, run
        return run.stdout

    def refuse(self, words: str, *arguments: str) -> None:
        """The command must fail with status 1 and this message, a regular expression, on standard error."""
        run = self.call(*arguments)
        assert (run.returncode, run.stdout) == (1, ""), run
        assert re.search(words, run.stderr), run.stderr

    def create_without_conmon(self, *arguments: str, cwd: Path | None = None) -> None:
        """`create`, which must succeed; the container has no pipes, and its parent is no subreaper."""
        null = subprocess.DEVNULL
        command = self.command("create", *arguments)
        subprocess.run(command, cwd=cwd, stdin=null, stdout=null, stderr=null, check=True, timeout=TIMEOUT)

    def start_caller(self, command: Sequence[str], pid_file: Path, directory: Path) -> Called:
        """Run a command, which writes `pid_file`, below a process like conmon, with pipes as standard streams."""
        (reading, stdin), (out, stdout), (err, stderr), (lines, report) = (os.pipe() for _ in range(4))
        theirs = (reading, stdout, stderr)
        arguments = [*map(str, (report, pid_file, directory, *theirs)), *command]
        caller = subprocess.Popen(
            [sys.executable, "-m", "support.oci_caller", *arguments],
            env={**os.environ, "PYTHONPATH": f"{SOURCES}{os.pathsep}{_ROOT / 'tests'}"},
            pass_fds=(report, *theirs),
        )
        for descriptor in (report, *theirs):
            os.close(descriptor)
        for descriptor in (stdin, out, err, lines):
            self._undo.callback(_close, descriptor)
        called = Called(caller, Stream(lines), stdin, Stream(out), Stream(err), pid_file)
        self._undo.callback(called.kill)
        return called

    def begin_create(self, name: str, spec: Mapping[str, Any], *options: str) -> Called:
        """Call `create` without waiting for its end."""
        bundle = self.bundle(name, spec)
        pid_file = bundle / "pidfile"
        pid_file.unlink(missing_ok=True)
        command = self.command("create", "--bundle", str(bundle), "--pid-file", str(pid_file), *options, name)
        return self.start_caller(command, pid_file, bundle)

    def create(self, name: str, spec: Mapping[str, Any], *options: str) -> Called:
        """`create`, which must succeed."""
        called = self.begin_create(name, spec, *options)
        assert called.pid > 0
        return called

    def run(self, name: str, spec: Mapping[str, Any], *options: str) -> Called:
        """`create` and `start`, which must succeed."""
        called = self.create(name, spec, *options)
        self.succeed("start", name)
        return called

    def exec_detached(self, name: str, wanted: Mapping[str, Any], *options: str) -> Called:
        """`exec --detach` of a `process`, as conmon calls it."""
        file, pid_file = self.directory / f"process-{name}.json", self.directory / f"exec-{name}.pid"
        file.write_text(json.dumps(wanted))
        pid_file.unlink(missing_ok=True)
        command = ["exec", "--pid-file", str(pid_file), "--process", str(file), "--detach", *options, name]
        return self.start_caller(self.command(*command), pid_file, self.directory)

    def state(self, name: str) -> dict[str, Any]:
        """What `state` prints."""
        found: dict[str, Any] = json.loads(self.succeed("state", name))
        return found

    def status(self, name: str) -> str:
        """The status that `state` prints."""
        return str(self.state(name)["status"])

    def wait_until_stopped(self, name: str) -> None:
        """Wait until the daemon, too, knows that the container has ended."""
        eventually(lambda: self.status(name) == "stopped", f"the end of {name} is recorded")

    def delete(self, *names: str) -> None:
        """`delete --force` of each, as CRI-O calls it."""
        for name in names:
            self.succeed("delete", "--force", name)

    # -- the CT -----------------------------------------------------------------------------------------------

    def vmid(self) -> int:
        """The CT of the only pod."""
        (pod,) = self.machine.client.pods()
        return self.machine.client.vmid(pod.id)

    def stop_ct(self, vmid: int = 0) -> None:
        """Stop a CT as its administrator does: that of the only pod, if none is given."""
        node = self.machine.node
        node.request("POST", f"/nodes/{node.name}/lxc/{vmid or self.vmid()}/status/stop")

    def wait_until_nothing_left(self) -> None:
        """Wait until recovery has removed all pods."""
        self.machine.wait_until_nothing_left()
        self.assert_nothing_left()

    def assert_nothing_left(self) -> None:
        """No pod has left anything, neither of the front's cgroups a mount."""
        self.machine.assert_nothing_left()
        assert [each for each in mounts.mounts() if CGROUP in str(each.mountpoint)] == []


def _close(descriptor: int) -> None:
    with suppress(OSError):  # a test may have closed it
        os.close(descriptor)


def _removed(directory: Path) -> bool:
    """Whether it could be removed: podman cleans up after a container when it likes, and mounts."""
    mounts.umount_below(directory)
    try:
        shutil.rmtree(directory)
    except OSError:  # EBUSY, ENOTEMPTY
        return False
    return True


@contextmanager
def front(machine: Machine, program: Path) -> Iterator[Front]:
    """A front of a machine; at the end its callers are gone, and its pods and cgroups, too."""
    with ExitStack() as undo:
        directory = machine.directory / "front"
        directory.mkdir()
        undo.callback(eventually, lambda: _removed(directory), "the front's directory is removed")
        undo.callback(cgroups.detect().remove, CGROUP)
        undo.callback(machine.clean)
        yield Front(machine, program, directory, undo)


@contextmanager
def pinned_namespaces(directory: Path, *kinds: str) -> Iterator[dict[str, str]]:
    """New namespaces, pinned by bind mounts as CRI-O's pinns does it: their paths by their types."""
    options = {"network": "net", "ipc": "ipc", "uts": "uts"}
    with ExitStack() as undo:
        child = subprocess.Popen(
            ["unshare", *(f"--{options[kind]}" for kind in kinds), "sh", "-c", "echo ready; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        undo.enter_context(child)
        assert child.stdin is not None
        assert child.stdout is not None
        undo.callback(child.stdin.close)
        child.stdout.readline()
        paths = {}
        for kind in kinds:
            path = directory / f"ns-{kind}"
            path.touch()
            undo.callback(unpin, path)
            mounts.bind(Path(f"/proc/{child.pid}/ns/{options[kind]}"), path)
            paths[kind] = str(path)
        yield paths


def unpin(path: Path) -> None:
    """Remove a pinned namespace, as CRI-O does it when it stops a pod. Idempotent."""
    if path.exists():
        with suppress(OSError):
            mounts.umount(path, detach=True)
        path.unlink()


# -- what stands between a front and its runtime ------------------------------------------------------------------


@contextmanager
def console_socket(path: Path) -> Iterator[socket.socket]:
    """A listening socket to which the runtime sends the master of a container's pty."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(TIMEOUT)
        yield listener


def received_fd(listener: socket.socket) -> int:
    """The descriptor that the next client of the socket sends; close it."""
    client, _ = listener.accept()
    with client:
        client.settimeout(TIMEOUT)
        _, (descriptor,), _, _ = socket.recv_fds(client, 4096, 1)
        return descriptor


class Conmon:
    """The real conmon, called as CRI-O calls it: to create a container, or for an `exec` of a process in it."""

    def __init__(
        self, front: Front, name: str, spec: Mapping[str, Any] | None, process: Mapping[str, Any] | None = None
    ) -> None:
        directory = front.directory / f"conmon-{name}-{next(_numbers)}"
        self.exits = directory / "exits"
        self.exits.mkdir(parents=True)
        self.log = directory / "log"
        self.log.touch()
        options = ["-c", name, "-n", name, "-u", name, "-l", str(self.log), "--socket-dir-path", str(directory)]
        options += [
            "-r",
            str(front.program),
            "--runtime-arg=--socket",
            f"--runtime-arg={front.machine.runtime_socket}",
        ]
        options += [f"--runtime-arg=--root={front.root}", "--exit-dir", str(self.exits), "--full-attach"]
        if spec is not None:
            bundle = front.bundle(name, spec)
            options += ["-b", str(bundle), "-p", str(bundle / "pidfile"), "-P", str(directory / "conmon.pid")]
        else:
            (directory / "process.json").write_text(json.dumps(process))
            options += ["-p", str(directory / "pidfile"), "-e", "--sync"]
            options += ["--exec-process-spec", str(directory / "process.json")]
        reading, sync = os.pipe()
        waiting, start = os.pipe()
        environment = {**os.environ, "_OCI_SYNCPIPE": str(sync), "_OCI_STARTPIPE": str(waiting)}
        null = subprocess.DEVNULL
        self._process = subprocess.Popen(
            ["conmon", *options], env=environment, pass_fds=(sync, waiting), cwd=directory, stdin=null
        )
        os.close(sync)
        os.close(waiting)
        os.write(start, b"\0")  # as CRI-O, once it has put conmon into its cgroup
        os.close(start)
        self._reports = Stream(reading)

    def report(self) -> dict[str, Any]:
        """What it reports first."""
        line = self._reports.wait_for("\n").split("\n")[0]
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """Stop reading its reports. It ends with its container."""
        os.close(self._reports.descriptor)
        self._process.wait(TIMEOUT)
