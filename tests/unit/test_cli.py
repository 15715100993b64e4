# SPDX-License-Identifier: Apache-2.0
"""Options that all commands of `pvecri` have."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvecri import cli


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
    assert cli.main([each.replace("FILE", str(path)) for each in arguments]) == 0
