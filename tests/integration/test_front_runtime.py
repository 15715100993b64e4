# SPDX-License-Identifier: Apache-2.0
"""The commands of pvecri-runtime, call by call as CRI-O, conmon, containerd's shim and podman issue them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from contextlib import closing

import pytest
from support.cri_client import eventually
from support.front import PATH, Conmon, Front, Stream, console_socket, namespaces, oci_spec, process, received_fd

from pvecri import __version__
from pvecri.linux import cgroups, processes

HOST_PID = {"namespaces": namespaces(network="", uts="")}
WAIT = ("sh", "-c", "trap 'exit 7' TERM; echo ready; while true; do usleep 10000; done")


def test_version_and_features_need_no_container(front: Front) -> None:
    assert front.succeed("--version").startswith(f"pvecri-runtime version {__version__}\n")
    features = json.loads(front.succeed("features"))
    assert features["ociVersionMin"]
    assert features["ociVersionMax"]


def test_container_has_the_life_of_the_oci_spec(front: Front) -> None:
    created = front.create(
        "web", oci_spec("sh", "-c", "echo hello; echo oops >&2; exit 3", annotations={"a": "b"})
    )
    state = front.state("web")
    assert (state["id"], state["status"], state["pid"]) == ("web", "created", created.pid)
    assert (state["bundle"], state["annotations"]) == (str(front.directory / "bundles/web"), {"a": "b"})
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", state["created"])
    front.succeed("start", "web")
    assert (created.stdout.read(), created.stderr.read()) == ("hello\n", "oops\n")
    assert created.wait() == 3
    front.wait_until_stopped("web")
    assert front.state("web")["pid"] == 0
    front.succeed("delete", "web")
    front.refuse("container 'web' does not exist", "state", "web")
    front.assert_nothing_left()


def test_nothing_of_the_command_runs_before_start(front: Front) -> None:
    created = front.create("web", oci_spec("touch", "/tmp/started"))
    started = front.directory / "bundles/web/rootfs/tmp/started"
    assert not started.exists()
    front.succeed("start", "web")
    assert created.wait() == 0
    assert started.exists()
    front.refuse("cannot start a container that is stopped", "start", "web")


def test_container_without_a_pid_file_runs(front: Front) -> None:
    bundle = front.bundle("web", oci_spec("sleep", "1000"))
    front.create_without_conmon("--bundle", str(bundle), "web")
    front.succeed("start", "web")
    assert front.status("web") == "running"


def test_bundle_is_the_working_directory_by_default(front: Front) -> None:
    bundle = front.bundle("web", oci_spec("sleep", "1000"))
    front.create_without_conmon("--pid-file", "pidfile", "web", cwd=bundle)
    assert front.state("web")["pid"] == int((bundle / "pidfile").read_text())


@pytest.mark.parametrize(
    ("command", "ending"),
    [
        ("exit 0", 0),
        ("exit 255", 255),
        ("kill -KILL $$", -signal.SIGKILL),
        ("kill -ABRT $$", -signal.SIGABRT),
        ("kill -SEGV $$", -signal.SIGSEGV),
        ("kill -34 $$", -34),
    ],
)
def test_end_of_the_container_is_the_callers_childs(front: Front, command: str, ending: int) -> None:
    # A shell that is PID 1 of its namespace cannot kill itself: the kernel protects it.
    spec = oci_spec("sh", "-c", command, linux=HOST_PID)
    assert front.run("web", spec).wait() == ending


def test_signals_reach_the_container(front: Front) -> None:
    running = front.run("web", oci_spec(*WAIT))
    running.stdout.wait_for("ready")
    front.succeed("kill", "web", "15")
    assert running.wait() == 7
    front.refuse("container not running", "kill", "web", "15")


def test_signal_to_the_pid_of_the_pid_file_reaches_the_container(front: Front) -> None:
    running = front.run("web", oci_spec(*WAIT))
    running.stdout.wait_for("ready")
    os.kill(running.pid, signal.SIGTERM)
    assert running.wait() == 7


@pytest.mark.parametrize("arguments", [("KILL",), ("9",), ("SIGKILL",), ("sigkill",)])
def test_sigkill_ends_the_container(front: Front, arguments: tuple[str, ...]) -> None:
    running = front.run("web", oci_spec("sleep", "1000"))
    front.succeed("kill", "web", *arguments)
    assert running.wait() == -signal.SIGKILL


def test_created_container_can_be_killed_and_deleted(front: Front) -> None:
    created = front.create("web", oci_spec("sleep", "1000"))
    front.refuse("that is not stopped: created", "delete", "web")
    front.succeed("kill", "web", "KILL")
    assert created.wait() == -signal.SIGKILL
    front.wait_until_stopped("web")
    front.succeed("delete", "web")
    front.assert_nothing_left()


def test_kill_of_all_spares_the_monitor(front: Front) -> None:
    script = "sleep 1000 & echo ready; trap 'exit 7' TERM; while true; do usleep 10000; done"
    running = front.run("web", oci_spec("sh", "-c", script, linux=HOST_PID))
    running.stdout.wait_for("ready")
    front.succeed("kill", "--all", "web", "9")
    assert running.wait() == -signal.SIGKILL
    assert running.stdout.read() == "ready\n"


def test_delete_with_force_kills_and_is_idempotent(front: Front) -> None:
    running = front.run("web", oci_spec("sleep", "1000"))
    front.refuse("that is not stopped: running", "delete", "web")
    front.delete("web")
    assert running.wait() == -signal.SIGKILL
    front.delete("web", "never-was")
    front.refuse("container 'never-was' does not exist", "delete", "never-was")
    front.assert_nothing_left()


def test_standard_streams_are_the_callers(front: Front) -> None:
    running = front.run("web", oci_spec("sh", "-c", "cat; echo end >&2"))
    os.write(running.stdin, b"one\n")
    running.stdout.wait_for("one\n")
    os.write(running.stdin, b"two\n")
    os.close(running.stdin)
    assert running.stdout.read() == "one\ntwo\n"
    assert running.stderr.read() == "end\n"
    assert running.wait() == 0


def test_streams_end_with_the_container_while_the_caller_lives(front: Front) -> None:
    created = front.create("web", oci_spec("sleep", "1000"))
    front.succeed("kill", "web", "9")
    assert created.stdout.read() == ""
    assert created.stderr.read() == ""


def test_console_socket_gets_the_pty(front: Front) -> None:
    spec = oci_spec("sh", "-c", "tty; stty size; read line; echo got $line")
    spec["process"] |= {"terminal": True, "consoleSize": {"height": 31, "width": 97}}
    with console_socket(front.directory / "c.sock") as listener:
        created = front.create("web", spec, "--console-socket", str(front.directory / "c.sock"))
        console = Stream(received_fd(listener))
    front.succeed("start", "web")
    assert "31 97" in console.wait_for("31 97")
    os.write(console.descriptor, b"line\n")
    console.wait_for("got line")
    assert created.wait() == 0
    console.read()
    os.close(console.descriptor)


# -- exec ---------------------------------------------------------------------------------------------------------


def test_detached_exec_is_the_callers_child(front: Front) -> None:
    front.run("web", oci_spec("sleep", "1000"))
    called = front.exec_detached(
        "web", process("sh", "-c", "cat; echo $HELLO >&2; exit 4", env=[PATH, "HELLO=hi"])
    )
    assert processes.status(called.pid)["PPid"] == str(called.caller.pid)
    assert os.getpgid(called.pid) == called.pid  # conmon kills the group when its timeout is over
    os.write(called.stdin, b"input")
    os.close(called.stdin)
    assert (called.stdout.read(), called.stderr.read(), called.wait()) == ("input", "hi\n", 4)


def test_detached_exec_dies_of_the_callers_signal(front: Front) -> None:
    front.run("web", oci_spec("sleep", "1000"))
    called = front.exec_detached("web", process("sleep", "1000"))
    os.killpg(called.pid, signal.SIGKILL)
    assert called.wait() == -signal.SIGKILL
    assert front.status("web") == "running"


@pytest.mark.parametrize(("command", "status"), [("exit 0", 0), ("exit 42", 42), ("kill -KILL $$", 137)])
def test_foreground_exec_exits_as_its_command(front: Front, command: str, status: int) -> None:
    front.run("web", oci_spec("sleep", "1000"))
    file = front.directory / "process.json"
    file.write_text(json.dumps(process("sh", "-c", f"cat; echo oops >&2; {command}")))
    run = front.call("exec", "--process", str(file), "web", input="in")
    assert (run.returncode, run.stdout, run.stderr) == (status, "in", "oops\n")


def test_exec_of_words_runs_in_the_container(front: Front) -> None:
    front.run("web", oci_spec("sleep", "1000"))
    options = ("--env", "A=b", "--cwd", "/tmp", "--user", "1000:50")
    text = front.succeed("exec", *options, "web", "sh", "-c", "echo $A; pwd; id -u; id -g; hostname")
    assert text.split() == ["b", "/tmp", "1000", "50", "front"]


def test_exec_has_the_callers_terminal(front: Front) -> None:
    front.run("web", oci_spec("sleep", "1000"))
    file = front.directory / "process.json"
    file.write_text(json.dumps(process("sh", "-c", "tty; stty size; exit 5", terminal=True)))
    master, slave = os.openpty()
    os.set_inheritable(slave, True)
    subprocess.run(["stty", "rows", "23", "cols", "87"], stdin=slave, check=True)
    command = front.command("exec", "--process", str(file), "web")
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True) as program:
        os.close(slave)
        text = Stream(master).read()
    os.close(master)
    assert "/dev/pts/" in text
    assert program.returncode == 5


def test_exec_that_cannot_run_says_why(front: Front) -> None:
    front.run("web", oci_spec("sleep", "1000"))
    called = front.exec_detached("web", process("/not/there"))
    assert called.status != 0
    assert "/not/there" in called.stderr.read()
    front.delete("web")
    front.refuse("container 'web' does not exist", "exec", "web", "true")


def test_processes_of_execs_are_in_the_containers_cgroup(front: Front) -> None:
    running = front.run("web", oci_spec("sleep", "1000"))
    called = front.exec_detached("web", process("sleep", "2000"))
    assert called.status == 0
    pids = json.loads(front.succeed("ps", "--format", "json", "web"))
    assert called.pid in pids
    assert running.pid not in pids
    assert len(pids) == 2
    assert "sleep 2000" in front.succeed("ps", "web")
    front.succeed("kill", "web", "9")
    assert called.wait() == -signal.SIGKILL


# -- the other commands -------------------------------------------------------------------------------------------


def test_paused_container_resumes(front: Front) -> None:
    running = front.run("web", oci_spec("sh", "-c", "echo ready; read line; exit 6"))
    running.stdout.wait_for("ready")
    front.succeed("pause", "web")
    assert front.status("web") == "paused"
    os.write(running.stdin, b"\n")
    front.succeed("resume", "web")
    assert running.wait() == 6


def test_paused_container_dies_of_sigkill(front: Front) -> None:
    running = front.run("web", oci_spec("sleep", "1000"))
    front.succeed("pause", "web")
    front.succeed("kill", "web", "KILL")
    assert running.wait() == -signal.SIGKILL
    front.delete("web")
    front.assert_nothing_left()


def test_update_reads_resources_from_stdin(front: Front) -> None:
    front.run("web", oci_spec("sleep", "1000"))
    limits = {"memory": {"limit": 64 << 20}, "cpu": {"quota": 50_000, "period": 100_000}, "pids": {"limit": 20}}
    front.succeed("update", "--resources", "-", "web", input=json.dumps(limits))
    group = f"/lxc/{front.vmid()}/{front.machine.client.containers()[0].id}"
    trees = cgroups.detect()
    memory = "memory.max" if trees.pure_v2 else "memory.limit_in_bytes"
    assert int((trees.directory(group, "memory") / memory).read_text()) == 64 << 20
    # The pod is this container: its CT has its limits, and room for the CT's own processes.
    config = front.machine.node.ct(front.vmid(), "config")
    assert float(str(config["cpulimit"])) == 0.5
    assert int(str(config["memory"])) >= 64


def test_update_with_options_and_a_file(front: Front) -> None:
    front.run("web", oci_spec("sleep", "1000"))
    file = front.directory / "resources.json"
    file.write_text(json.dumps({"memory": {"limit": 64 << 20}}))
    front.succeed("update", "-r", str(file), "web")
    front.succeed("update", "--memory", str(32 << 20), "web")
    front.refuse("--resources: .*: No such file", "update", "--resources", "/not/there", "web")


def test_update_that_the_kernel_refuses_says_why(front: Front) -> None:
    front.run("web", oci_spec("sleep", "1000"))
    run = front.call("update", "--resources", "-", "web", input=json.dumps({"cpu": {"quota": 1}}))
    assert run.returncode == 1
    assert "cpu" in run.stderr


def test_events_are_the_oci_runtimes(front: Front) -> None:
    front.run("web", oci_spec("sleep", "1000"))
    assert json.loads(front.succeed("events", "--stats", "web"))["type"] == "stats"


def test_ids_are_unique_below_a_root_only(front: Front) -> None:
    one = front.run("web", oci_spec("sh", "-c", "echo one; sleep 1000"))
    front.root += "2"
    front.refuse("does not exist", "state", "web")
    two = front.run("web", oci_spec("sh", "-c", "echo two; sleep 1000"))
    assert (one.stdout.wait_for("one\n"), two.stdout.wait_for("two\n")) == ("one\n", "two\n")
    assert len(front.machine.client.pods()) == 2
    assert front.begin_create("web", oci_spec("true")).status == 1
    front.delete("web")
    assert len(front.machine.client.pods()) == 1


# -- what fails ---------------------------------------------------------------------------------------------------


def test_command_that_does_not_exist_fails_in_create_or_start(front: Front) -> None:
    created = front.begin_create("web", oci_spec("/not/there"))
    if created.status == 0:
        front.refuse("/not/there", "start", "web")
        front.delete("web")
    else:
        assert "/not/there" in created.stderr.read()
    front.assert_nothing_left()


def test_error_of_the_oci_runtime_is_the_callers(front: Front) -> None:
    created = front.begin_create("web", oci_spec("true", mounts=[{"destination": "/x", "type": "nofs"}]))
    assert created.status not in (0, None)
    assert "/x" in created.stderr.read()
    front.delete("web")
    front.assert_nothing_left()


def test_error_is_in_the_log_file(front: Front) -> None:
    log = front.directory / "log.json"
    program, rest = front.command()[0], front.command()[1:]
    run = subprocess.run([program, "--log", log, "--log-format=json", *rest, "start", "no-such"], check=False)
    assert run.returncode == 1
    (line,) = log.read_text().splitlines()
    assert json.loads(line) == {"level": "error", "msg": "container 'no-such' does not exist"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("frobnicate", "web"), "there is no command 'frobnicate': create, start"),
        (("start", "--fast", "web"), "start: the option --fast is not known"),
        (("create", "--bundle"), "create: the option --bundle needs a value"),
        (("start",), "start: the container's id is missing"),
        (("create", "--bundle", "/not/there", "web"), "--bundle: /not/there/config.json: No such file"),
        (("kill", "web"), "container 'web' does not exist"),
    ],
)
def test_wrong_command_line_says_what_is_wrong(front: Front, arguments: tuple[str, ...], words: str) -> None:
    front.refuse(words, *arguments)


def test_bundle_that_is_no_spec_is_refused(front: Front) -> None:
    bundle = front.bundle("web", {})
    front.refuse("is not of the OCI runtime spec", "create", "--bundle", str(bundle), "web")
    (bundle / "config.json").write_text("{")
    front.refuse("is not JSON", "create", "--bundle", str(bundle), "web")


def test_only_root_may_call(front: Front) -> None:
    program = front.machine.directory / "runtime-for-all"
    program.write_bytes(front.program.read_bytes())
    program.chmod(0o755)
    socket = front.machine.runtime_socket
    command = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        str(program),
        "--socket",
        str(socket),
    ]
    socket.chmod(0o666)
    try:
        run = subprocess.run([*command, "state", "web"], capture_output=True, text=True, check=False)
    finally:
        socket.chmod(0o600)
        program.unlink()
    assert (run.returncode, run.stderr) == (1, "pvecri-runtime: only root may use pvecri-runtime\n")


def test_socket_is_roots_alone(front: Front) -> None:
    assert front.machine.runtime_socket.stat().st_mode & 0o777 == 0o600


# -- conmon -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("command", "code"), [("echo hello; exit 9", "9"), ("kill -9 $$", "137")])
def test_conmon_records_output_and_exit_code(front: Front, command: str, code: str) -> None:
    spec = oci_spec("sh", "-c", command, linux=HOST_PID)
    with closing(Conmon(front, "web", spec)) as conmon:
        assert conmon.report()["pid"] == front.state("web")["pid"]
        front.succeed("start", "web")
        exit_file = conmon.exits / "web"
        eventually(lambda: exit_file.exists() and exit_file.read_text(), "conmon has written the exit code")
        assert exit_file.read_text() == code
        assert ("stdout F hello" in conmon.log.read_text()) == ("hello" in command)


def test_conmon_gets_the_message_of_a_failed_create(front: Front) -> None:
    with closing(Conmon(front, "web", oci_spec("true", mounts=[{"destination": "/x", "type": "nofs"}]))) as conmon:
        report = conmon.report()
        assert report["pid"] == -1
        assert "/x" in report["message"]


def test_conmon_runs_an_exec_with_its_timeout(front: Front) -> None:
    front.run("web", oci_spec("sleep", "1000"))
    with closing(Conmon(front, "web", None, process("sh", "-c", "echo out; exit 8"))) as conmon:
        assert conmon.report()["exit_code"] == 8
        assert "stdout F out" in conmon.log.read_text()
