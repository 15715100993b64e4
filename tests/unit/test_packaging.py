# SPDX-License-Identifier: Apache-2.0
"""The distributions, the systemd unit, the example configuration, and files for CRI-O, containerd and podman."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
import sys
import tarfile
import textwrap
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from pvecri.config.settings import Config
from pvecri.front import options
from pvecri.setup import files
from pvecri.setup.choice import Choice

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
    assert "ExecStartPre=/opt/pvecri/bin/pvecri check --startup" in unit


def test_example_configuration_has_the_documented_account() -> None:
    setup = (ROOT / "docs/proxmox-setup.md").read_text()
    example = (ROOT / "examples/config.toml").read_text()
    assert 'token_id = "kube@pve!NODE"' in setup
    assert 'token_id = "kube@pve!NODE"' in example
    assert "pveum user token add kube@pve NODE" in setup


# -- files for CRI-O, containerd and podman ------------------------------------------------------------------


def makefile(name: str) -> str:
    """The default of a variable of runtime/Makefile."""
    lines = (ROOT / "runtime/Makefile").read_text().splitlines()
    return next(line.partition("?=")[2].strip() for line in lines if line.startswith(f"{name} ?="))


INSTALLED = f"{makefile('BINDIR')}/pvecri-runtime"
CONTAINERD_CRI = {
    "50-pvecri.toml": "io.containerd.cri.v1.runtime",
    "append-to-1.x.toml": "io.containerd.grpc.v1.cri",
}


def read(name: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / "packaging" / name).read_text())


def test_drop_in_of_crio_names_the_installed_program() -> None:
    handlers = read("crio/50-pvecri.conf")["crio"]["runtime"]["runtimes"]
    assert handlers == {
        "pvecri": {"runtime_path": INSTALLED, "runtime_type": "oci", "runtime_root": options.DEFAULT_ROOT}
    }


def test_drop_in_of_the_kubelet_answers_as_a_kernel_without_openat2() -> None:
    unit = configparser.ConfigParser()
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(ROOT / "packaging/crio/50-pvecri-kubelet.conf")
    # Any other error than ENOSYS the kubelet's cgroup library takes for one of the file.
    assert dict(unit["Service"]) == {"SystemCallFilter": "~openat2:ENOSYS"}


@pytest.mark.parametrize(("file", "plugin"), CONTAINERD_CRI.items())
def test_files_of_containerd_name_the_installed_program(file: str, plugin: str) -> None:
    handlers = read(f"containerd/{file}")["plugins"][plugin]["containerd"]["runtimes"]
    assert handlers["pvecri"] == {"runtime_type": "io.containerd.runc.v2", "options": {"BinaryName": INSTALLED}}


def test_file_of_containerd_1_keeps_the_default_runtime() -> None:
    # A list of runtimes in config.toml replaces containerd 1.x's default list.
    handlers = read("containerd/append-to-1.x.toml")["plugins"]["io.containerd.grpc.v1.cri"]["containerd"][
        "runtimes"
    ]
    assert handlers.keys() == {"pvecri", "runc"}


def test_only_the_file_of_containerd_that_is_appended_has_no_version() -> None:
    assert read("containerd/50-pvecri.toml")["version"] == 3
    # At the end of config.toml a key without a table would be one of the last table.
    assert list(read("containerd/append-to-1.x.toml")) == ["plugins"]


def test_drop_in_of_podman_adds_a_runtime_and_keeps_podmans_own() -> None:
    engine = read("podman/50-pvecri.conf")["engine"]
    assert engine["runtimes"] == {"pvecri": [INSTALLED]}
    assert {"crun", "runc", "pvecri"} <= set(engine["runtime_supports_json"])


def test_example_of_a_runtime_class_has_the_handler_of_the_drop_ins() -> None:
    runtime_class, pod = yaml.safe_load_all((ROOT / "examples/runtime-handler.yaml").read_text())
    assert runtime_class["handler"] == "pvecri"
    assert pod["spec"]["runtimeClassName"] == runtime_class["metadata"]["name"]


def test_systemd_unit_starts_before_all_programs_that_need_it() -> None:
    unit = (ROOT / "packaging/pvecri.service").read_text()
    assert "Before=kubelet.service crio.service containerd.service" in unit
    assert "Type=notify" in unit  # else they are started as soon as its program is executed


def test_pods_end_before_proxmox_ends_its_guests_and_while_the_daemon_runs() -> None:
    """At a shutdown systemd stops units in the reverse of their start order."""
    unit = (ROOT / "packaging/pvecri-shutdown.service").read_text()
    assert "After=pvecri.service pve-guests.service" in unit
    assert "ExecStop=/opt/pvecri/bin/pvecri stop-pods --at-shutdown" in unit
    daemon = (ROOT / "packaging/pvecri.service").read_text()
    assert "Wants=network-online.target pvecri-shutdown.service" in daemon  # nobody has to enable it
    # It must not be ordered after pve-guests.service, whose start takes as long as that of all other guests.
    assert "After=network-online.target pveproxy.service" in daemon


def test_program_connects_where_the_daemon_does_by_default() -> None:
    assert f'"{Config().oci.socket}"' in (ROOT / "runtime/pvecri-runtime.c").read_text()


# -- the Debian package, and what `pvecri setup` writes ------------------------------------------------------


def packages_of_step_1() -> set[str]:
    """What docs/operations/by-hand.md installs."""
    text = (ROOT / "docs/operations/by-hand.md").read_text()
    return set(text.partition("--no-install-recommends")[2].partition("\n\n")[0].replace("\\", "").split())


def field_of_package(name: str) -> set[str]:
    """The packages in a field of the package's control file; of alternatives the first."""
    text = (ROOT / "packaging/debian/control").read_text().partition("\nPackage: pvecri\n")[2]
    value = re.search(rf"^{name}:((?:.*\n?)(?: .*\n)*)", text, re.MULTILINE)
    assert value
    names = (each.split("|")[0].split("(")[0].strip().removesuffix(":any") for each in value.group(1).split(","))
    return {each for each in names if each and not each.startswith("${")}


def test_package_needs_what_the_steps_by_hand_install() -> None:
    wanted = packages_of_step_1() - {"python3-venv"}
    assert wanted <= field_of_package("Depends") | field_of_package("Recommends")


def test_unit_names_the_program_that_the_package_replaces() -> None:
    rules = (ROOT / "packaging/debian/rules").read_text()
    assert "s,/opt/pvecri/bin/pvecri,/usr/bin/pvecri," in rules


def test_setup_writes_the_files_of_the_checkout() -> None:
    assert json.loads(files.network("10.244.0.0/24")) == json.loads(
        (ROOT / "examples/10-pvecri.conflist").read_text()
    )
    assert (ROOT / "examples/crictl.yaml").read_text() == files.CRICTL
    assert (ROOT / "packaging/20-pvecri.conf").read_text() == files.KUBELET


def test_setup_writes_the_documented_configuration() -> None:
    text = (ROOT / "docs/proxmox-setup.md").read_text().partition("config.toml`:\n\n")[2].partition("\n## ")[0]
    choice = Choice(node="NODE", token="NODE", storage="local-lvm", template_storage="local", rootfs_size_gib=1)
    written = tomllib.loads(files.configuration(choice))
    assert written.pop("proxmox") == tomllib.loads(textwrap.dedent(text))["proxmox"] | {"node": "NODE"}
    assert written == {}


def test_setup_beside_a_front_writes_the_documented_settings() -> None:
    text = (ROOT / "docs/oci-runtime.md").read_text()
    documented = textwrap.dedent(re.findall(r"\n\n((?:    .*\n|\n)*    \[nri\](?:\n    .*|\n)*)", text)[0])
    choice = Choice(node="NODE", token="NODE", storage="local", template_storage="local", front=True)
    written = tomllib.loads(files.configuration(choice))
    del written["proxmox"]
    assert written == tomllib.loads(documented)
