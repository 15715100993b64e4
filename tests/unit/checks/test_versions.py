# SPDX-License-Identifier: Apache-2.0
"""Programs, kernels and versions of Proxmox VE that are too old are named, with the version that is needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvecri.checks import versions
from pvecri.checks.finding import Finding
from pvecri.config.settings import Config, parse


def program(directory: Path, name: str, output: str) -> Path:
    """A program that prints `output`, whatever its arguments."""
    path = directory / name
    path.write_text(f"#!/bin/sh\ncat <<'EOF'\n{output}\nEOF\n")
    path.chmod(0o755)
    return path


async def found(settings: Config, *subjects: str) -> list[Finding]:
    return [each async for each in versions.check(settings) if each.subject in subjects]


async def test_programs_of_this_machine_are_new_enough() -> None:
    assert await found(Config(), "programs", "kernel") == []


@pytest.mark.parametrize(
    ("setting", "output", "expected"),
    [
        (
            "runtime.conmon",
            "conmon version 2.0.20\ncommit: 5b7f4d1",
            ("problem", "2.0.20", "2.0.23", "--full-attach"),
        ),
        ("runtime.conmon", "conmon version 2.1.2\ncommit: unknown", ("warning", "2.1.2", "2.1.6", "not tested")),
        ("images.skopeo", "skopeo version 1.5.2", ("problem", "1.5.2", "1.6", "no image can be pulled")),
        ("images.skopeo", "skopeo version 1.8.0-dev", ("warning", "1.8.0", "1.9.3", "not tested")),
        ("runtime.oci_runtime", "runc version 1.0.3+ds1\nspec: 1.0.2-dev", ("warning", "1.0.3", "1.1.5", "runc")),
        ("runtime.oci_runtime", "crun version 1.5\nspec: 1.0.0", ("warning", "1.5", "1.8.1", "crun")),
    ],
)
async def test_program_that_is_too_old(
    tmp_path: Path, setting: str, output: str, expected: tuple[str, ...]
) -> None:
    path = program(tmp_path, "program", output)
    [finding] = await found(parse(f'{setting} = "{path}"'), "programs")
    level, version, needed, consequence = expected
    assert finding.level == level
    assert f"{path} {version} is older than {needed}: " in finding.message
    assert finding.remedy.startswith("install ")
    assert finding.remedy.endswith(f"{needed} or later")
    assert consequence in str(finding)


async def test_programs_that_are_found_in_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "criu", "Version: 3.12\nGitID: v3.12")
    program(tmp_path, "lxc-start", "4.0.6")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin")
    assert [each.remedy for each in await found(Config(), "programs")] == [
        "install criu 3.15 or later",
        "install lxc-start 5.0.2 or later",
    ]


async def test_program_without_a_version_yields_nothing(tmp_path: Path) -> None:
    for each in (program(tmp_path, "silent", ""), tmp_path / "none"):
        assert await found(parse(f'runtime.conmon = "{each}"'), "programs") == []


@pytest.mark.parametrize(
    ("release", "level", "needed"),
    [
        ("5.15.107-2-pve", "problem", "5.19"),
        ("6.1.0-9-amd64", "warning", "6.2"),
        ("6.2.16-3-pve", "warning", "6.3"),
    ],
)
def test_kernel_that_is_too_old(tmp_path: Path, release: str, level: str, needed: str) -> None:
    path = tmp_path / "sys/kernel/osrelease"
    path.parent.mkdir(parents=True)
    path.write_text(f"{release}\n")
    [finding] = versions.kernel(tmp_path)
    assert (finding.level, finding.remedy) == (level, f"boot Linux {needed} or later")
    assert f"Linux {release} is older than {needed}: " in finding.message
    path.write_text("6.8.12-4-pve\n")
    assert list(versions.kernel(tmp_path)) == []


def test_proxmox_that_is_too_old() -> None:
    [finding] = versions.proxmox(Config(), "7.4-3")
    assert str(finding).startswith("warning: proxmox: Proxmox VE 7.4-3 is older than 8.0: ")
    assert list(versions.proxmox(Config(), "8.0.4")) == []
    settings = parse(
        """
        [images]
        template_storage = "local"
        [network.classes.lan]
        bridge = "vmbr1"
        ip = "dhcp"
        """
    )
    pulls, dhcp = versions.proxmox(settings, "9.0.3")
    assert {pulls.level, dhcp.level} == {"problem"}
    assert "images.template_storage needs Proxmox VE 9.1, and this is Proxmox VE 9.0.3" in pulls.message
    assert "network.classes.lan" in dhcp.message
    assert list(versions.proxmox(settings, "9.1.1")) == []
