# SPDX-License-Identifier: AGPL-3.0-or-later
"""The embedded node for its tests: one process per test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from pve_replay.account import documented_account
from pve_replay.process import Login, NodeProcess, new_state_dir
from pve_replay.sandbox_template import write_template


@pytest.fixture
async def node() -> AsyncIterator[NodeProcess]:
    """A node with a template, `local:vztmpl/sandbox_1.0.tar.gz`, that serves faults on demand."""
    with new_state_dir() as state_dir:
        async with NodeProcess(state_dir, "--faults") as process:
            await process.upload(write_template(state_dir / "sandbox_1.0.tar.gz"))
            yield process


@pytest.fixture
async def account(node: NodeProcess) -> Login:
    """The documented account on that node."""
    return await documented_account(node)
