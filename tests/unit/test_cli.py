# SPDX-License-Identifier: Apache-2.0
"""Options that all commands of `pvecri` have."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import pvecri
from pvecri.cli import command_line
from pvecri.config.settings import DEFAULT_PATH


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config", "FILE", "check", "--offline"],
        ["check", "--offline", "--config", "FILE"],
        ["check-config", "--config", "FILE", "--offline"],
        ["config", "dump", "--config", "FILE"],
        ["config", "--config", "FILE", "dump"],
        ["--config", "/nonexistent", "config", "dump", "--config", "FILE"],  # the last one counts
    ],
)
def test_config_stands_before_and_after_the_command(arguments: list[str], tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[proxmox]\ntoken_id = "a@pve!t"\ntoken_secret_file = "/t"\n')
    assert command_line.main([each.replace("FILE", str(path)) for each in arguments]) == 0


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        (["serve"], str(DEFAULT_PATH)),
        (["--config", "/a", "serve"], "/a"),
        (["--config=/a", "serve"], "/a"),
        (["serve", "--config", "/a"], "/a"),
    ],
)
def test_the_daemon_is_started_without_the_other_commands(arguments: list[str], path: str) -> None:
    options = command_line._only_serve(arguments)
    assert options == command_line._parser().parse_args(arguments)
    assert str(options.config) == path


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["serve", "--help"],
        ["serve", "more"],
        ["image", "remove", "serve"],
        ["--config", "/a", "image", "remove", "serve"],
        ["--config", "serve"],
        ["serve", "--config"],
        ["--conf", "/a", "serve"],
    ],
)
def test_other_command_lines_are_not_the_daemons(arguments: list[str]) -> None:
    assert command_line._only_serve(arguments) is None


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_commands_and_options(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(word in script for word in ("umount", "filesystem", "completion"))


def test_bash_completes_a_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["completion", "bash"]) == 0
    complete = "COMP_WORDS=(pvecri image conv) COMP_CWORD=2; _shtab_pvecri; echo ${COMPREPLY[@]}"
    script = f"{capsys.readouterr().out}\n{complete}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "convert\n"


def test_version_needs_no_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["--config", str(tmp_path / "config.toml"), "version"]) == 0
    assert capsys.readouterr().out == f"pvecri {pvecri.__version__}\n"


def test_version_reports_an_invalid_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[runtime]\nsockets = 1\n")
    assert command_line.main(["--config", str(path), "version"]) == 1
    output = capsys.readouterr()
    assert output.out == f"pvecri {pvecri.__version__}\n"
    assert "sockets" in output.err
