# SPDX-License-Identifier: Apache-2.0
"""`pvecri check-config`: what would keep pods from running is named before one is asked for."""

from __future__ import annotations

import os
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


def changed(machine: Machine, before: str, after: str) -> Path:
    text = (machine.directory / "config.toml").read_text()
    assert before in text
    path = machine.directory / "changed.toml"
    path.write_text(text.replace(before, after))
    return path


def test_a_configuration_that_works_is_fine(machine: Machine) -> None:
    done = check(machine)
    assert (done.returncode, done.stdout) == (0, f"{machine.directory}/config.toml: fine\n"), done.stderr


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ('template_storage = "local"', 'template_storage = "nowhere"', "nowhere"),
        ('storage = "local"', 'storage = "nowhere"', "nowhere"),
        ('fingerprint = "', 'fingerprint = "00', "proxmox.fingerprint"),
    ],
)
def test_what_proxmox_does_not_have_is_named(machine: Machine, before: str, after: str, words: str) -> None:
    path = changed(machine, before, after)
    done = check(machine, config=path)
    assert done.returncode == 1, done.stdout
    assert words in done.stderr


def test_a_wrong_secret_is_named(machine: Machine) -> None:
    wrong = machine.directory / "wrong"
    wrong.write_text("00000000-0000-0000-0000-000000000000")
    done = check(machine, config=changed(machine, f'{machine.directory}/token"', f'{wrong}"'))
    assert done.returncode == 1
    assert "proxmox.token_secret_file" in done.stderr


def test_offline_asks_nobody(machine: Machine) -> None:
    done = check(machine, "--offline", config=changed(machine, 'storage = "local"', 'storage = "nowhere"'))
    assert done.returncode == 0
    assert "Proxmox was not asked" in done.stdout
