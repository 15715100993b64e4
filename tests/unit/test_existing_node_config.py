# SPDX-License-Identifier: Apache-2.0
"""The daemon under test on a Proxmox node that is there already (docs/operations/real-node.md)."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.existing import Existing

PROXMOX = '[proxmox]\ntoken_id = "kube@pve!pve"\ntoken_secret_file = "{secret}"\npool = "kubernetes"\n'


@pytest.mark.parametrize(("runtime", "seconds"), [("", 600.0), ("[runtime]\nstart_timeout = 7.0\n", 7.0)])
def test_cts_have_the_tests_ten_minutes_to_start(tmp_path: Path, runtime: str, seconds: float) -> None:
    secret, path = tmp_path / "token", tmp_path / "config.toml"
    secret.touch(mode=0o600)
    path.write_text(PROXMOX.format(secret=secret) + runtime)
    assert Existing(path).runtime()["start_timeout"] == seconds
