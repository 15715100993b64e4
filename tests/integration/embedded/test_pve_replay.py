# SPDX-License-Identifier: AGPL-3.0-or-later
"""The embedded node answers as a real Proxmox VE node did."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pve_replay import records
from pve_replay.compare import difference
from pve_replay.differences import DIFFERENCES
from pve_replay.node import replay_node

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="starts CTs: needs root"),
    pytest.mark.skipif(not Path("/usr/bin/lxc-start").exists(), reason="starts CTs: needs LXC"),
]


@pytest.mark.skipif(
    not records.files(),
    reason=f"no records of a Proxmox node in {records.directory()} (set PVECRI_PVE_RECORDS to their directory)",
)
@pytest.mark.parametrize("path", records.files(), ids=lambda path: path.stem)
async def test_responses_equal_the_recorded_ones_except_listed_differences(path: Path) -> None:
    found: dict[str, str] = {}
    asked = records.load(path)
    async with replay_node(path.name) as node:
        for record in asked:
            expected, actual = await node.replay(record)
            found[record.key] = difference(expected, actual)
    listed = {record.key: DIFFERENCES[record.key] for record in asked if record.key in DIFFERENCES}
    unlisted = {key: what for key, what in found.items() if what and key not in listed}
    assert not unlisted, "\n\n".join(f"{key}\n{what}" for key, what in unlisted.items())
    gone = [key for key in listed if not found[key]]
    assert not gone, f"listed as different and is not: {gone}"
