# SPDX-License-Identifier: Apache-2.0
"""podman with pvecri-runtime as its OCI runtime: each container is a CT."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.cri_client import TIMEOUT, CriClient, eventually
from support.front import Front
from support.processes import need
from support.tools import tools_layer

from pvecri.cri.proto import cri_pb2 as pb
from pvecri.linux import mounts

# Limits that fewer privileges allow than podman's own, which are the node's highest.
CONFIG = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]
[engine]
lock_type = "file"
"""


class Podman:
    """podman with directories of its own, which runs containers by pvecri-runtime."""

    def __init__(self, front: Front, directory: Path) -> None:
        self.front = front
        config = directory / "containers.conf"
        config.write_text(CONFIG)
        self._environment = {**os.environ, "CONTAINERS_CONF": str(config)}
        self._command = ["podman", "--root", f"{directory}/root", "--runroot", f"{directory}/run"]
        self._command += [
            "--tmpdir",
            f"{directory}/tmp",
            "--cgroup-manager",
            "cgroupfs",
            "--events-backend",
            "file",
        ]
        self._command += ["--runtime", str(front.wrapper())]
        (directory / "tools.tar").write_bytes(tools_layer())
        self("import", str(directory / "tools.tar"), "tools")

    def call(self, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
        """A command to its end; `text` is its standard input."""
        return subprocess.run(
            [*self._command, *arguments],
            env=self._environment,
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT,
        )

    def __call__(self, *arguments: str, text: str = "") -> str:
        """The output of a command that must succeed."""
        run = self.call(*arguments, text=text)
        assert run.returncode == 0, run
        return run.stdout

    def run(self, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
        """`podman run`, without a network."""
        return self.call("run", "--network", "none", *arguments, text=text)

    def start(self, *command: str, options: tuple[str, ...] = ()) -> None:
        """Start container `web`, and leave it running."""
        run = self.run("--detach", "--name", "web", *options, "tools", *(command or ("sleep", "1000")))
        assert run.returncode == 0, run

    def state(self) -> tuple[str, int]:
        """Status and exit code of `web`."""
        state = json.loads(self("inspect", "web"))[0]["State"]
        return state["Status"], state["ExitCode"]


@pytest.fixture
def podman(front: Front) -> Iterator[Podman]:
    """podman; at the end its containers are removed."""
    need("podman", "podman")
    directory = front.directory / "podman"
    directory.mkdir()
    with ExitStack() as undo:
        undo.callback(mounts.umount_below, directory)
        client = Podman(front, directory)
        undo.callback(client, "rm", "--force", "--all", "--time", "0")
        yield client


def test_run_has_output_and_exit_code(podman: Podman) -> None:
    run = podman.run("--rm", "tools", "sh", "-c", "echo hello; echo oops >&2; exit 3")
    assert (run.returncode, run.stdout, run.stderr) == (3, "hello\n", "oops\n")
    podman.front.assert_nothing_left()


def test_run_passes_standard_input(podman: Podman) -> None:
    assert podman.run("--rm", "--interactive", "tools", "cat", text="line\n").stdout == "line\n"


def test_run_with_a_terminal(podman: Podman) -> None:
    assert "/dev/pts/" in podman.run("--rm", "--tty", "tools", "tty").stdout


def test_command_that_does_not_exist_is_127(podman: Podman) -> None:
    run = podman.run("--rm", "tools", "no-such-command")
    assert run.returncode == 127
    assert "no-such-command" in run.stderr
    podman.front.assert_nothing_left()


def test_container_is_a_ct_with_its_limits(podman: Podman, cri: CriClient) -> None:
    podman.start(options=("--memory", "200m", "--cpus", "0.5"))
    (pod,) = cri.pods()
    config = podman.front.machine.node.ct(cri.vmid(pod.id), "config")
    assert float(str(config["cpulimit"])) == 0.5
    assert int(str(config["memory"])) >= 200


def test_exec_top_stats_and_pause(podman: Podman) -> None:
    podman.start()
    assert podman("exec", "web", "echo", "hello") == "hello\n"
    assert podman("exec", "--interactive", "web", "cat", text="line") == "line"
    assert podman.call("exec", "web", "sh", "-c", "exit 4").returncode == 4
    assert "sleep 1000" in podman("top", "web")
    assert int(json.loads(podman("stats", "--no-stream", "--format", "json", "web"))[0]["pids"]) >= 1
    podman("pause", "web")
    assert podman.state()[0] == "paused"
    podman("unpause", "web")
    assert podman.state()[0] == "running"


def test_stop_is_a_signal_first(podman: Podman) -> None:
    podman.start("sh", "-c", "trap 'exit 7' TERM; echo ready; while true; do usleep 10000; done")
    eventually(lambda: podman("logs", "web"), "it listens")
    podman("stop", "--time", "30", "web")
    assert podman.state() == ("exited", 7)


def test_kill_is_137(podman: Podman) -> None:
    podman.start()
    podman("kill", "web")
    podman("wait", "web")
    assert podman.state() == ("exited", 137)
    podman("rm", "web")
    podman.front.assert_nothing_left()


def test_ct_stopped_in_proxmox_is_137(podman: Podman) -> None:
    podman.start()
    podman.front.stop_ct()
    podman("wait", "web")
    assert podman.state() == ("exited", 137)


def test_stopped_container_starts_again_in_another_ct(podman: Podman) -> None:
    podman.start("sh", "-c", "echo again; sleep 1000")
    podman("kill", "web")
    podman("wait", "web")
    podman("start", "web")
    assert podman.state()[0] == "running"
    eventually(lambda: podman("logs", "web") == "again\nagain\n", "it has logged twice")
    podman("rm", "--force", "--time", "0", "web")
    podman.front.assert_nothing_left()


def test_checkpoint_runs_on_in_another_ct(podman: Podman, cri: CriClient) -> None:
    need("criu", "criu")
    podman.start("sh", "-c", "n=0; while true; do n=$((n+1)); echo $n; usleep 100000; done")
    eventually(lambda: podman("logs", "web"), "it counts")
    run = podman.call("container", "checkpoint", "web")
    if run.returncode and "riu" in run.stderr:
        pytest.skip(f"the OCI runtime cannot use criu here: {run.stderr}")
    assert run.returncode == 0, run
    assert podman.state()[0] == "exited"
    assert cri.pods() == []
    before = podman("logs", "web")
    podman("container", "restore", "web")
    assert podman.state()[0] == "running"
    (container,) = cri.containers()
    assert container.state == pb.CONTAINER_RUNNING
    number = int(before.split()[-1])
    eventually(lambda: f"\n{number + 1}\n" in podman("logs", "web"), "it counts on")


def test_daemons_restart_is_not_seen(podman: Podman) -> None:
    podman.start()
    podman.front.machine.kill()
    assert podman.state()[0] == "running"
    podman.front.machine.start()
    assert podman("exec", "web", "echo", "hello") == "hello\n"


def test_without_a_daemon_run_says_what_to_do(podman: Podman) -> None:
    podman.front.machine.stop()
    run = podman.run("tools", "true")
    assert run.returncode == 126
    assert "cannot reach pvecri" in run.stderr
    podman.front.machine.start()
    podman("rm", "--all")
