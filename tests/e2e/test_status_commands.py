# SPDX-License-Identifier: Apache-2.0
"""`pvecri status`, `pods`, `version`, and `pvecri image` beside the daemon."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from support.cri_client import CriClient
from support.daemon import Machine
from support.image_builder import LayerBuilder, build_image
from support.processes import SOURCES

import pvecri


def pvecri_command(machine: Machine, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pvecri", "--config", str(machine.directory / "config.toml"), *arguments]
    env = {**os.environ, "PYTHONPATH": SOURCES}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_status_shows_conditions_and_counts(machine: Machine, container: str) -> None:
    done = pvecri_command(machine, "status")
    assert done.returncode == 0, done.stderr
    assert f"serving unix://{machine.socket}" in done.stdout
    assert "pods        1 ready, 0 not ready" in done.stdout
    assert "containers  1 running" in done.stdout
    assert "0 pulls under way" in done.stdout
    found = json.loads(pvecri_command(machine, "status", "--json").stdout)
    assert found["ready"]
    assert {"RuntimeReady", "NetworkReady", "ProxmoxReady"} <= {each["type"] for each in found["conditions"]}


def test_status_of_a_node_that_is_not_ready(machine: Machine) -> None:
    conflist = machine.conf_dir / "10-pvt.conflist"
    text = conflist.read_text()
    conflist.unlink()
    try:
        done = pvecri_command(machine, "status")
    finally:
        conflist.write_text(text)
    assert done.returncode == 1
    [line] = [line for line in done.stdout.splitlines() if line.startswith("NetworkReady")]
    assert " no " in line
    assert str(machine.conf_dir) in line


def test_pods_have_their_vmids(machine: Machine, cri: CriClient, pod: str) -> None:
    done = pvecri_command(machine, "pods")
    [row] = [line for line in done.stdout.splitlines() if pod[:13] in line]
    assert f" Ready     {cri.vmid(pod)} " in row
    [listed] = [each for each in json.loads(pvecri_command(machine, "pods", "--json").stdout) if each["id"] == pod]
    assert listed["vmid"] == cri.vmid(pod)


@pytest.mark.parametrize("command", ["status", "pods"])
def test_without_a_daemon_the_socket_is_named(machine: Machine, command: str) -> None:
    machine.stop()
    try:
        done = pvecri_command(machine, command)
        version = pvecri_command(machine, "version")
    finally:
        machine.start()
    assert done.returncode == 1
    assert f"no daemon serves on {machine.socket}" in done.stderr
    assert (version.returncode, version.stdout) == (0, f"pvecri {pvecri.__version__}\n")
    both = f"pvecri {pvecri.__version__}\ndaemon {pvecri.__version__}\n"
    assert pvecri_command(machine, "version").stdout == both


def test_image_that_is_not_there_cannot_be_removed(machine: Machine) -> None:
    """The CRI's RemoveImage succeeds, and so did the command."""
    done = pvecri_command(machine, "image", "remove", "docker.io/library/not-there:1")
    assert done.returncode == 1
    assert "image docker.io/library/not-there:1 is not in the store" in done.stderr


def test_image_list_has_every_name_of_an_image(machine: Machine, cri: CriClient) -> None:
    built = build_image(LayerBuilder().file("named", "twice").build())
    names = [machine.registry.push("tests/named", tag, built) for tag in ("first", "second")]
    for name in names:
        cri.pull(name)
    listed = [line.split()[0] for line in pvecri_command(machine, "image", "list").stdout.splitlines()]
    assert [name for name in listed if "tests/named:" in name] == names
    assert pvecri_command(machine, "image", "remove", names[0]).returncode == 0
