# SPDX-License-Identifier: Apache-2.0
"""script/demo, script/serve and script/damaged-node, run as a new user runs them."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from trial.cri import CriClient
from trial.footprint import take
from trial.plan import make_plan

from pvecri.cri.proto import cri_pb2 as pb

SCRIPTS = Path(__file__).resolve().parents[2] / "script"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="pods are LXC containers: needs root")


@pytest.fixture
def state() -> Path:
    """A directory, not made yet, that root of an unprivileged pod can pass through: pytest's own it cannot."""
    return Path(f"/var/lib/pvecri-test-{secrets.token_hex(3)}")


@pytest.fixture
def serve(state: Path, tmp_path: Path) -> Iterator[list[str]]:
    """The command line of script/serve for an installation of the test's own, which is removed afterwards."""
    command = [
        str(SCRIPTS / "serve"),
        "--state-dir",
        str(state),
        "--socket",
        str(tmp_path / "cri.sock"),
    ]
    yield command
    subprocess.run([*command, "--purge"], check=True, capture_output=True, stdin=subprocess.DEVNULL)


def started(command: list[str]) -> subprocess.Popen[str]:
    """Script/serve, once it has said how to stop it."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if "Ctrl-C" in line:
            return process
    raise AssertionError(f"script/serve ended with {process.wait()}: {said}")


def interrupted(process: subprocess.Popen[str]) -> int:
    """The exit status after Ctrl-C."""
    process.send_signal(signal.SIGINT)
    process.communicate()
    return process.returncode


def test_demo_runs_a_pod_and_leaves_nothing_behind() -> None:
    demo = subprocess.run(
        [SCRIPTS / "demo"], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert demo.returncode == 0, demo.stdout
    assert demo.stdout.splitlines()[-1].endswith("and left nothing behind")


def test_check_finds_every_damage(tmp_path: Path) -> None:
    page = tmp_path / "check.md"
    done = subprocess.run(
        [SCRIPTS / "damaged-node", page], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "exit status 1" in page.read_text()


def test_interrupted_demo_cleans_up() -> None:
    demo = subprocess.Popen([SCRIPTS / "demo"], stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
    assert demo.stdout is not None
    state = ""
    for line in demo.stdout:
        if "--state-dir" in line:
            state = line.split("--state-dir ")[1].split()[0]
        if "the pod is CT" in line:
            break
    demo.terminate()
    rest = demo.stdout.read()
    demo.stdout.close()
    assert demo.wait() == 1
    assert "FAILED at step" in rest
    assert not Path(state).parent.exists()


def test_pods_survive_serve_and_are_removed_by_purge(serve: list[str], state: Path, tmp_path: Path) -> None:
    first = started(serve)
    plan = make_plan(state)
    with CriClient(tmp_path / "cri.sock") as client:
        pod = client.run_pod(pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name="a", namespace="b", uid="c")))
    assert interrupted(first) == 0
    assert len(take(plan).containers) == 1

    second = started(serve)
    with CriClient(tmp_path / "cri.sock") as client:
        assert client.pods() == [pod]
    assert interrupted(second) == 0

    subprocess.run([*serve, "--purge"], check=True, stdin=subprocess.DEVNULL)
    assert {kind: things for kind, things in take(plan).kinds().items() if things} == {}


def test_serve_refuses_a_foreign_directory(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    purge = [str(SCRIPTS / "serve"), "--state-dir", str(tmp_path), "--purge"]
    refused = subprocess.run(purge, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert refused.returncode == 1
    assert "not made by this script" in refused.stderr
    assert (tmp_path / "precious").exists()


def test_serve_does_not_purge_a_foreign_node() -> None:
    purge = [str(SCRIPTS / "serve"), "--config", "/dev/null", "--purge"]
    refused = subprocess.run(purge, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert refused.returncode == 1
    assert "crictl rmp --all --force" in refused.stderr


def test_serve_refuses_to_start_twice_in_one_directory(serve: list[str]) -> None:
    first = started(serve)
    second = subprocess.run(serve, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert interrupted(first) == 0
    assert second.returncode == 1
    assert "is in use" in second.stderr
