# SPDX-License-Identifier: Apache-2.0
"""`pvecri check-config`: problems that would keep pods from running are reported before the first pod."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.daemon import Machine
from support.processes import SOURCES


def check(machine: Machine, *options: str, config: Path | None = None) -> subprocess.CompletedProcess[str]:
    path = config or machine.directory / "config.toml"
    command = [sys.executable, "-m", "pvecri", "--config", str(path), "check-config", *options]
    return subprocess.run(
        command, env={**os.environ, "PYTHONPATH": SOURCES}, capture_output=True, text=True, check=False
    )


def changed(machine: Machine, setting: str, value: str) -> Path:
    """The daemon's configuration with another value in the section [proxmox]."""
    text = (machine.directory / "config.toml").read_text()
    others = re.sub(rf"^{setting} = .*\n", "", text, flags=re.MULTILINE)
    path = machine.directory / "changed.toml"
    path.write_text(others.replace("[proxmox]\n", f'[proxmox]\n{setting} = "{value}"\n'))
    return path


def test_valid_configuration_is_ok(machine: Machine) -> None:
    done = check(machine)
    assert (done.returncode, done.stdout) == (0, f"{machine.directory}/config.toml: OK\n"), done.stderr


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
    assert words in done.stderr


def test_a_wrong_secret_is_named(machine: Machine) -> None:
    wrong = machine.directory / "wrong"
    wrong.write_text("00000000-0000-0000-0000-000000000000")
    done = check(machine, config=changed(machine, "token_secret_file", str(wrong)))
    assert done.returncode == 1
    assert "proxmox.token_secret_file" in done.stderr


def test_offline_makes_no_requests(machine: Machine) -> None:
    done = check(machine, "--offline", config=changed(machine, "storage", "nowhere"))
    assert done.returncode == 0
    assert "Proxmox and this machine were not checked" in done.stdout
