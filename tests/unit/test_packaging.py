# SPDX-License-Identifier: Apache-2.0
"""What is handed to those who install pvecri."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of this checkout, built of a copy: what the build generates does not come here."""
    copy = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-c", BUILD, str(copy / "dist")]
    (copy / "dist").mkdir()
    built = subprocess.run(command, cwd=copy, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    return zipfile.ZipFile(copy / "dist" / built)


def test_the_wheel_holds_the_generated_code_and_no_file_of_another_licence(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert "pvecri/cri/proto/cri_pb2.py" in names
    assert [name for name in names if "embedded" in name] == []
    sources = [name for name in names if name.endswith(".py") and "/proto/" not in name]
    assert sources
    for name in sources:
        assert wheel.read(name).startswith(b"# SPDX-License-Identifier: Apache-2.0\n"), name


def test_the_services_unit_names_nothing_that_is_not_installed() -> None:
    unit = (ROOT / "packaging/pvecri.service").read_text()
    assert "Documentation=" not in unit
    assert "ExecStartPre=/opt/pvecri/bin/pvecri check-config --offline" in unit


def test_the_example_names_the_account_that_the_documentation_makes() -> None:
    setup = (ROOT / "docs/proxmox-setup.md").read_text()
    example = (ROOT / "examples/config.toml").read_text()
    assert 'token_id = "kube@pve!NODE"' in setup
    assert 'token_id = "kube@pve!NODE"' in example
    assert "pveum user token add kube@pve NODE" in setup
