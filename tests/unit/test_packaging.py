# SPDX-License-Identifier: Apache-2.0
"""The distributions, the systemd unit and the example configuration."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = "import sys; from hatchling import build; print(getattr(build, 'build_' + sys.argv[1])(sys.argv[2]))"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this checkout's two distributions: what a build generates does not come here."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("src", "embedded"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def build(kind: str, project: Path) -> Path:
    """Build the project's `wheel` or `sdist`."""
    target = project / "dist"
    command = [sys.executable, "-c", BUILD, kind, str(target)]
    built = subprocess.run(command, cwd=project, check=True, capture_output=True, text=True).stdout
    return target / built.splitlines()[-1]


def licences(wheel: zipfile.ZipFile) -> set[str]:
    """The licence that each handwritten module of the wheel names."""
    modules = [name for name in wheel.namelist() if name.endswith(".py") and "/proto/" not in name]
    return {
        wheel.read(name).decode().splitlines()[0].removeprefix("# SPDX-License-Identifier: ") for name in modules
    }


def metadata(wheel: zipfile.ZipFile) -> list[str]:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return wheel.read(name).decode().splitlines()


def test_wheel_of_pvecri_has_the_generated_code_and_one_licence(checkout: Path) -> None:
    with zipfile.ZipFile(build("wheel", checkout)) as wheel:
        assert "pvecri/cri/proto/cri_pb2.py" in wheel.namelist()
        assert {name.partition("/")[0] for name in wheel.namelist()} == {"pvecri", "pvecri-0.1.0.dist-info"}
        assert licences(wheel) == {"Apache-2.0"}
        assert not any(line.startswith("Requires-Dist: fakepve") for line in metadata(wheel))


def test_sdist_of_pvecri_leaves_the_embedded_node_out(checkout: Path) -> None:
    with tarfile.open(build("sdist", checkout)) as sdist:
        names = sdist.getnames()
    assert "pvecri-0.1.0/src/pvecri/daemon.py" in names
    assert [name for name in names if "/embedded" in name] == []


def test_wheel_of_the_embedded_node_has_its_own_licence_and_does_not_need_pvecri(checkout: Path) -> None:
    with zipfile.ZipFile(build("wheel", checkout / "embedded")) as wheel:
        assert "pvecri_embedded/__main__.py" in wheel.namelist()
        assert licences(wheel) == {"AGPL-3.0-or-later"}
        assert "License-Expression: AGPL-3.0-or-later" in metadata(wheel)
        assert not any(line.startswith("Requires-Dist: pvecri") for line in metadata(wheel))


def test_systemd_unit_refers_only_to_installed_files() -> None:
    unit = (ROOT / "packaging/pvecri.service").read_text()
    assert "Documentation=" not in unit
    assert "ExecStartPre=/opt/pvecri/bin/pvecri check-config --offline" in unit


def test_example_configuration_has_the_documented_account() -> None:
    setup = (ROOT / "docs/proxmox-setup.md").read_text()
    example = (ROOT / "examples/config.toml").read_text()
    assert 'token_id = "kube@pve!NODE"' in setup
    assert 'token_id = "kube@pve!NODE"' in example
    assert "pveum user token add kube@pve NODE" in setup
