# SPDX-License-Identifier: Apache-2.0
"""script/bootstrap on a Debian that has nothing yet: which packages it asks apt-get for."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("bash", "cat", "dirname", "flock", "mkdir", "rm", "chmod", "sha256sum")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root's bootstrap installs packages")


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A checkout whose PATH has no program that bootstrap looks for, and an apt-get that records its arguments.

    The kernel has AppArmor.
    """
    programs = tmp_path / "bin"
    programs.mkdir()
    for command in COMMANDS:
        (programs / command).symlink_to(shutil.which(command) or command)
    (programs / "id").write_text("#!/bin/sh\necho 0\n")
    (programs / "apt-get").write_text(f'#!/bin/sh\nfor each; do echo "$each"; done >>{tmp_path}/asked\nexit 1\n')
    for script in ("id", "apt-get"):
        (programs / script).chmod(0o755)
    (tmp_path / "script").mkdir()
    bootstrap = (ROOT / "script/bootstrap").read_text()
    # The real ones would be found by their paths.
    bootstrap = bootstrap.replace("PATH=$PATH:/usr/sbin:/sbin", "").replace("/usr/bin/python3", "")
    (tmp_path / "enabled").write_text("Y\n")
    bootstrap = bootstrap.replace("/sys/module/apparmor/parameters/enabled", f"{tmp_path}/enabled")
    (tmp_path / "script/bootstrap").write_text(bootstrap.replace("/usr/sbin/policy-rc.d", f"{tmp_path}/policy"))
    return tmp_path


def test_each_missing_package_is_one_argument(bare: Path) -> None:
    done = subprocess.run(
        ["/bin/bash", bare / "script/bootstrap", "tests"],
        env={"PATH": str(bare / "bin")},
        check=False,
        capture_output=True,
        text=True,
    )
    asked = (bare / "asked").read_text().splitlines()
    assert {"lxc", "apparmor", "gcc", "libc6-dev", "make", "python3-venv"} <= set(asked)
    assert [each for each in asked if " " in each] == []
    assert "Python 3.11 or newer is needed" not in done.stderr
