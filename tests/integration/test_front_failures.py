# SPDX-License-Identifier: Apache-2.0
"""The daemon, the caller, the monitor, the CT or Proxmox end or fail in each command of pvecri-runtime."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from support.cri_client import TIMEOUT, CriClient, eventually
from support.daemon import Machine
from support.front import Called, Front, containerd_annotations, crio_annotations, oci_spec, process
from support.machine_node import EmbeddedNode
from support.processes import need

from pvecri.cri.proto import cri_pb2 as pb
from pvecri.front.protocol import Connection, Disconnected
from pvecri.linux import namespaces, processes

SANDBOX, WEB = ("5a" * 32, "c0" * 32)
NO_MOUNT = [{"destination": "/x", "type": "nofs"}]
WAIT = ("sh", "-c", "trap 'exit 7' TERM; echo ready; while true; do usleep 10000; done")


def crash(machine: Machine) -> None:
    """Kill the daemon and start it again."""
    machine.kill()
    machine.start()


def waiting(front: Front) -> Called:
    """A container `web` that exits with 7 on SIGTERM."""
    called = front.run("web", oci_spec(*WAIT))
    called.stdout.wait_for("ready")
    return called


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that does not run, as if it was between two of its steps."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


# -- the daemon ---------------------------------------------------------------------------------------------------

COMMANDS = [
    ("create", "--bundle", ".", "web"),
    ("start", "web"),
    ("state", "web"),
    ("kill", "web", "15"),
    ("delete", "--force", "web"),
    ("exec", "web", "true"),
    ("update", "--resources", "-", "web"),
    ("pause", "web"),
    ("resume", "web"),
    ("ps", "web"),
    ("features",),
]


def test_without_a_daemon_each_command_says_what_to_do(front: Front) -> None:
    machine = front.machine
    for end in (machine.stop, machine.kill):
        end()
        for command in COMMANDS:
            front.refuse(f"cannot reach pvecri at {machine.runtime_socket}: .*systemctl start pvecri", *command)
        machine.start()
    assert front.succeed("--version")


def test_container_runs_and_ends_without_the_daemon(front: Front) -> None:
    called = waiting(front)
    front.machine.kill()
    os.kill(called.pid, signal.SIGTERM)
    assert called.wait() == 7
    front.machine.start()
    assert front.status("web") == "stopped"
    assert front.machine.client.containers()[0].state == pb.CONTAINER_EXITED
    front.delete("web")
    front.assert_nothing_left()


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_container_is_the_same_after_a_restart_of_the_daemon(front: Front, ending: signal.Signals) -> None:
    called = waiting(front)
    before = front.state("web")
    front.machine.stop(ending)
    front.machine.start()
    assert front.state("web") == before
    assert front.succeed("exec", "web", "echo", "here") == "here\n"
    detached = front.exec_detached("web", process("sh", "-c", "exit 4"))
    assert detached.wait() == 4
    front.succeed("kill", "web", "15")
    assert called.wait() == 7
    front.wait_until_stopped("web")
    front.delete("web")
    front.assert_nothing_left()


def test_created_container_can_be_started_after_a_restart(front: Front) -> None:
    created = front.create("web", oci_spec("sh", "-c", "echo hello; exit 3"))
    crash(front.machine)
    assert front.status("web") == "created"
    front.succeed("start", "web")
    assert (created.stdout.read(), created.wait()) == ("hello\n", 3)
    front.delete("web")
    front.assert_nothing_left()


def test_start_whose_record_was_lost_is_known_to_have_been_done(front: Front) -> None:
    need("runc", "runc")
    front.create("web", oci_spec("sleep", "1000"))
    front.machine.kill()
    # As a daemon that is killed after the OCI runtime's start, and before it writes that down.
    runtime = ["runc", f"--root={front.machine.run_dir / 'oci'}"]
    (container,) = (front.machine.run_dir / "oci").glob("[0-9a-f]*")
    subprocess.run([*runtime, "start", container.name], check=True)
    front.machine.start()
    assert front.status("web") == "running"
    front.refuse("cannot start a container that is running", "start", "web")


def test_daemon_killed_while_the_ct_is_created(front: Front, embedded: EmbeddedNode) -> None:
    embedded.fault(task="vzcreate", hold=True)
    called = front.begin_create("web", oci_spec("sleep", "1000"))
    eventually(embedded.cts, "the CT is being created")
    front.machine.kill()
    assert called.status == 1
    assert "ended before it had answered; its log says why" in called.stderr.read()
    embedded.clear_faults()
    front.machine.start()
    eventually(lambda: front.machine.client.pods() == [], "the pod is removed")
    front.delete("web")
    eventually(lambda: not embedded.cts(), "the CT is removed")
    front.run("web", oci_spec("true")).wait()


def test_daemon_killed_while_the_oci_runtime_creates(front: Front, tmp_path: Path) -> None:
    with hook(tmp_path, front) as spec:
        called = front.begin_create("web", spec)
        wait_for_hook(tmp_path)
        front.machine.kill()
    assert called.status == 1
    called.stderr.wait_for(f"pvecri-runtime: pvecri at {front.machine.runtime_socket}")
    front.machine.start()
    called.stderr.read()  # nothing has it open any more
    front.refuse("does not exist", "state", "web")
    front.delete("web")
    front.wait_until_nothing_left()


@contextmanager
def hook(directory: Path, front: Front) -> Iterator[dict[str, object]]:
    """A spec whose create waits in a hook until the context ends."""
    script = directory / "hook"
    script.write_text(f"#!/bin/sh\ncat >/dev/null; touch {directory}/reached; read line <{directory}/go\n")
    script.chmod(0o755)
    os.mkfifo(directory / "go")
    hooks = {"createRuntime": [{"path": str(script)}]}
    holding = os.open(directory / "go", os.O_RDWR)
    try:
        yield oci_spec("sleep", "1000", hooks=hooks)
    finally:
        os.write(holding, b"\n")
        os.close(holding)


def wait_for_hook(directory: Path) -> None:
    """Wait until the OCI runtime runs the hook."""
    eventually((directory / "reached").exists, "the hook runs")


@pytest.mark.parametrize("command", [("kill", "web", "9"), ("delete", "--force", "web"), ("start", "web")])
def test_daemon_killed_in_a_command(front: Front, command: tuple[str, ...]) -> None:
    called = front.create("web", oci_spec("sleep", "1000"))
    with stopped(front.machine.daemon.pid):
        program = subprocess.Popen(front.command(*command), stderr=subprocess.PIPE, text=True)
        eventually(lambda: has_sent(program.pid), "the call is sent")
        front.machine.daemon.end(signal.SIGKILL)
        _, message = program.communicate()
    assert program.returncode == 1
    assert "ended before it had answered" in message or "does not listen" in message
    front.machine.start()
    assert front.status("web") == "created"
    front.succeed(*command)
    front.delete("web")
    assert called.wait() == -signal.SIGKILL
    front.assert_nothing_left()


def has_sent(pid: int) -> bool:
    """Whether pvecri-runtime waits for an answer."""
    return "recvmsg" in Path(f"/proc/{pid}/stack").read_text() or Path(f"/proc/{pid}/wchan").read_text() != "0"


def test_daemon_killed_while_a_pod_is_removed(front: Front, embedded: EmbeddedNode) -> None:
    called = front.run("web", oci_spec("sleep", "1000"))
    embedded.fault(task="vzdestroy", hold=True)
    vmid = min(embedded.cts())
    front.succeed("delete", "--force", "web")
    eventually(lambda: embedded.tasks(vmid, "vzdestroy", "active"), "the CT is being destroyed")
    front.machine.kill()
    assert called.wait() == -signal.SIGKILL
    embedded.clear_faults()
    front.machine.start()
    front.delete("web")
    front.wait_until_nothing_left()


def test_container_with_the_id_of_a_removed_one_waits_for_its_ct(front: Front, embedded: EmbeddedNode) -> None:
    """As podman starts a container again."""
    front.run("web", oci_spec("sleep", "1000"))
    embedded.fault(task="vzdestroy", hold=True)
    front.succeed("delete", "--force", "web")
    eventually(embedded.holds, "the CT is being destroyed")
    again = front.begin_create("web", oci_spec("true"))
    embedded.clear_faults()
    assert again.status == 0
    front.delete("web")
    front.wait_until_nothing_left()


# -- the caller and the monitor -----------------------------------------------------------------------------------


def test_runtime_killed_while_the_ct_is_created(front: Front, embedded: EmbeddedNode) -> None:
    embedded.fault(task="vzcreate", hold=True)
    called = front.begin_create("web", oci_spec("sleep", "1000"))
    eventually(embedded.cts, "the CT is being created")
    (program,) = processes.children(called.caller.pid)
    os.kill(program, signal.SIGKILL)
    assert called.status == -signal.SIGKILL
    embedded.clear_faults()
    front.delete("web")
    front.wait_until_nothing_left()


def test_runtime_killed_while_a_pod_is_removed(front: Front, embedded: EmbeddedNode) -> None:
    # As containerd's shim does to a `delete` of more than 10 seconds. It does not delete again.
    front.run("web", oci_spec("sleep", "1000"))
    embedded.fault(request="GET /nodes/[^/]+/lxc/[0-9]+/config", hold=True)
    program = subprocess.Popen(front.command("delete", "--force", "web"))
    eventually(embedded.holds, "the CT is about to be stopped")
    program.kill()
    program.wait(TIMEOUT)
    embedded.clear_faults()
    front.wait_until_nothing_left()


def test_runtime_killed_while_a_pod_with_containers_is_stopped(front: Front, embedded: EmbeddedNode) -> None:
    front.run(SANDBOX, oci_spec("sleep", "1000", annotations=containerd_annotations(SANDBOX)))
    front.run(WEB, oci_spec("sleep", "1000", annotations=containerd_annotations(SANDBOX, "web")))
    embedded.fault(request="GET /nodes/[^/]+/lxc/[0-9]+/config", hold=True)
    program = subprocess.Popen(front.command("delete", "--force", SANDBOX))
    eventually(embedded.holds, "the CT is about to be stopped")
    program.kill()
    program.wait(TIMEOUT)
    embedded.clear_faults()
    front.delete(WEB)
    front.wait_until_nothing_left()


def test_runtime_killed_while_the_oci_runtime_creates(front: Front, tmp_path: Path) -> None:
    with hook(tmp_path, front) as spec:
        called = front.begin_create("web", spec)
        wait_for_hook(tmp_path)
        program = min(processes.children(called.caller.pid))
        os.kill(program, signal.SIGKILL)
        assert called.status == -signal.SIGKILL
    front.wait_until_nothing_left()
    front.refuse("does not exist", "state", "web")


def test_ct_stopped_while_the_oci_runtime_creates(front: Front, tmp_path: Path) -> None:
    with hook(tmp_path, front) as spec:
        called = front.begin_create("web", spec)
        wait_for_hook(tmp_path)
        front.stop_ct()
        assert called.status == 1
        assert "the CT has ended" in called.stderr.read()
    front.delete("web")
    front.wait_until_nothing_left()


async def test_create_in_a_ct_that_has_ended_says_so(front: Front, tmp_path: Path) -> None:
    # Between the daemon's check of the CT and the start of the monitor: so the daemon's side is the test's here.
    with (
        pid_namespace_without_init(tmp_path) as namespace,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener,
    ):
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        command = [str(front.program), "--socket", str(tmp_path / "s"), "create", "web"]
        program = await asyncio.create_subprocess_exec(*command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        with listener.accept()[0] as client:
            daemon = Connection(client)
            await daemon.call()
            files = {"exit_file": tmp_path / "exit", "pid_file": tmp_path / "pid"}
            with pytest.raises(Disconnected):
                await daemon.launch(["/bin/true"], **files, pid_namespace=namespace, started=lambda _: None)
        _, message = await program.communicate()
        assert message.startswith(b"pvecri-runtime: the CT has ended")
        assert program.returncode == 1


@contextmanager
def pid_namespace_without_init(directory: Path) -> Iterator[Path]:
    """A PID namespace, pinned in a file, whose first process has ended."""
    pinned = directory / "namespace"
    with subprocess.Popen(["unshare", "--pid", "--fork", "sleep", "1000"]) as unshare:
        try:
            eventually(lambda: processes.children(unshare.pid), "its first process runs")
            namespaces.pin(Path(f"/proc/{unshare.pid}/ns/pid_for_children"), pinned)
        finally:
            for first in processes.children(unshare.pid):
                os.kill(first, signal.SIGKILL)
    try:
        yield pinned
    finally:
        namespaces.unpin(pinned)


def test_container_outlives_its_caller(front: Front) -> None:
    called = waiting(front)
    called.kill()
    assert front.status("web") == "running"
    front.succeed("kill", "web", "15")
    front.wait_until_stopped("web")
    assert front.machine.client.containers()[0].state == pb.CONTAINER_EXITED
    assert front.machine.client.status(front.machine.client.containers()[0].id).exit_code == 7
    front.delete("web")
    front.assert_nothing_left()


def test_container_ends_with_its_monitor(front: Front) -> None:
    called = waiting(front)
    os.kill(called.pid, signal.SIGKILL)
    assert called.wait() == -signal.SIGKILL
    front.wait_until_stopped("web")
    assert called.stdout.read() == "ready\n"  # nothing of the container has the pipe open any more
    front.delete("web")
    front.assert_nothing_left()


def test_exec_ends_with_its_container(front: Front) -> None:
    front.run("web", oci_spec("sleep", "1000"))
    detached = front.exec_detached("web", process("sleep", "1000"))
    assert detached.status == 0
    front.delete("web")
    assert detached.wait() == -signal.SIGKILL
    front.assert_nothing_left()


# -- the CT, Proxmox, the node ------------------------------------------------------------------------------------


def test_ct_stopped_without_the_daemon_ends_its_containers(front: Front) -> None:
    called = waiting(front)
    vmid = front.vmid()
    front.machine.kill()
    front.stop_ct(vmid)
    assert called.wait() == -signal.SIGKILL
    front.machine.start()
    front.wait_until_stopped("web")
    assert front.machine.client.status(front.machine.client.containers()[0].id).exit_code == 137
    front.delete("web")
    front.assert_nothing_left()


def test_ct_destroyed_behind_the_daemons_back_leaves_nothing(front: Front) -> None:
    called = waiting(front)
    front.machine.node.remove_ct(front.vmid())
    assert called.wait() == -signal.SIGKILL
    front.wait_until_stopped("web")
    front.delete("web")
    front.assert_nothing_left()


def test_create_without_proxmox_fails_with_the_reason(front: Front, embedded: EmbeddedNode) -> None:
    embedded.stop()
    called = front.begin_create("web", oci_spec("true"))
    assert called.status == 1
    assert "proxmox.url" in called.stderr.read()
    embedded.start()
    front.delete("web")
    front.wait_until_nothing_left()


def test_running_container_needs_no_proxmox(front: Front, embedded: EmbeddedNode) -> None:
    called = waiting(front)
    embedded.stop()
    assert front.status("web") == "running"
    assert front.succeed("exec", "web", "echo", "here") == "here\n"
    front.succeed("kill", "web", "15")
    assert called.wait() == 7
    front.wait_until_stopped("web")
    front.succeed("delete", "--force", "web")
    embedded.start()
    front.wait_until_nothing_left()


@pytest.mark.parametrize("task", ["vzcreate", "vzstart"])
def test_failed_task_is_the_message_of_create(front: Front, embedded: EmbeddedNode, task: str) -> None:
    embedded.fault(task=task, text="disk quota exceeded")
    called = front.begin_create("web", oci_spec("true"))
    assert called.status == 1
    assert "disk quota exceeded" in called.stderr.read()
    front.assert_nothing_left()
    assert front.run("web", oci_spec("true")).wait() == 0


def test_failed_container_of_a_running_pod_leaves_the_pod(front: Front, cri: CriClient) -> None:
    front.run(SANDBOX, oci_spec("sleep", "1000", annotations=crio_annotations(SANDBOX)))
    wrong = oci_spec(
        "true", annotations=crio_annotations(SANDBOX, "web"), mounts=[{"destination": "/x", "type": "no"}]
    )
    assert front.begin_create(WEB, wrong).status != 0
    front.delete(WEB)
    assert [(each.id, each.state) for each in cri.pods()] == [(SANDBOX, pb.SANDBOX_READY)]
    assert cri.containers() == []
    right = oci_spec("true", annotations=crio_annotations(SANDBOX, "web"))
    assert front.run(WEB, right).wait() == 0


def test_after_a_reboot_the_front_finds_nothing(front: Front, embedded: EmbeddedNode) -> None:
    called = waiting(front)
    front.machine.stop()
    front.stop_ct(min(embedded.cts()))
    assert called.wait() == -signal.SIGKILL
    front.machine.forget_run_dir()
    front.machine.start()
    front.wait_until_nothing_left()
    front.refuse("does not exist", "state", "web")
    front.delete("web")
    assert front.run("web", oci_spec("true")).wait() == 0
