# SPDX-License-Identifier: Apache-2.0
"""`pvecri check`: problems that would keep pods from running are reported before the first pod."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.cri_client import CriClient
from support.daemon import Machine
from support.processes import SOURCES


def check(
    machine: Machine, *options: str, config: Path | None = None, command: str = "check"
) -> subprocess.CompletedProcess[str]:
    path = config or machine.directory / "config.toml"
    arguments = [sys.executable, "-m", "pvecri", "--config", str(path), command, *options]
    return subprocess.run(
        arguments, env={**os.environ, "PYTHONPATH": SOURCES}, capture_output=True, text=True, check=False
    )


def changed(machine: Machine, setting: str, value: str) -> Path:
    """The daemon's configuration with another value in the section [proxmox]."""
    text = (machine.directory / "config.toml").read_text()
    others = re.sub(rf"^{setting} = .*\n", "", text, flags=re.MULTILINE)
    path = machine.directory / "changed.toml"
    path.write_text(others.replace("[proxmox]\n", f'[proxmox]\n{setting} = "{value}"\n'))
    return path


def problems(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stdout.splitlines() if line.startswith("problem: ")]


def test_healthy_node_has_no_problem(machine: Machine, cri: CriClient, container: str) -> None:
    done = check(machine)
    assert (done.returncode, problems(done), done.stderr) == (0, [], ""), done.stdout
    assert done.stdout.endswith(f"{machine.directory}/config.toml: OK\n")
    assert "warning: store:" not in done.stdout


def test_json_has_the_findings(machine: Machine) -> None:
    done = check(machine, "--json", config=changed(machine, "storage", "nowhere"))
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["ok"]) == (1, False)
    assert [each["subject"] for each in answer["findings"] if each["level"] == "problem"] == ["proxmox"]
    invalid = machine.directory / "changed.toml"
    invalid.write_text("proxmox = 7")
    answer = json.loads(check(machine, "--json", config=invalid).stdout)
    assert [each["subject"] for each in answer["findings"]] == ["configuration"]


def test_pod_whose_ct_was_destroyed_is_named(machine: Machine, cri: CriClient, pod: str) -> None:
    vmid = cri.vmid(pod)
    machine.stop()  # which would notice it by itself
    try:
        machine.node.task("POST", f"/lxc/{vmid}/status/stop")
        machine.node.task("DELETE", f"/lxc/{vmid}")
        done = check(machine)
    finally:
        machine.start()
    assert f" has no CT {vmid} in Proxmox any more" in done.stdout
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("template_storage", "nowhere", "nowhere"),
        ("storage", "nowhere", "nowhere"),
        ("fingerprint", "00" * 32, "proxmox.fingerprint"),
    ],
)
def test_setting_that_proxmox_does_not_have_is_named(
    machine: Machine, setting: str, value: str, words: str
) -> None:
    path = changed(machine, setting, value)
    done = check(machine, config=path)
    assert done.returncode == 1, done.stdout
    assert words in problems(done)[0]


def test_a_wrong_secret_is_named(machine: Machine) -> None:
    wrong = machine.directory / "wrong"
    wrong.write_text("00000000-0000-0000-0000-000000000000")
    done = check(machine, config=changed(machine, "token_secret_file", str(wrong)))
    assert done.returncode == 1
    assert any("proxmox.token_secret_file" in line for line in problems(done))


def test_startup_checks_what_the_daemon_needs_and_asks_no_proxmox(machine: Machine) -> None:
    assert check(machine, "--startup", config=changed(machine, "storage", "nowhere")).returncode == 0
    done = check(machine, "--startup", config=changed(machine, "token_secret_file", "/nonexistent"))
    assert done.returncode == 1
    assert "proxmox.token_secret_file" in problems(done)[0]


def test_former_name_and_strict(machine: Machine) -> None:
    secret = machine.directory / "open-secret"
    secret.write_text("x")
    secret.chmod(0o644)
    path = changed(machine, "token_secret_file", str(secret))
    assert check(machine, "--startup", config=path).returncode == 0
    assert check(machine, "--startup", "--strict", config=path).returncode == 1
    assert check(machine, "--offline", config=path, command="check-config").returncode == 0


def test_offline_makes_no_requests(machine: Machine) -> None:
    done = check(machine, "--offline", config=changed(machine, "storage", "nowhere"))
    assert done.returncode == 0
    assert "Proxmox and this machine were not checked" in done.stdout
