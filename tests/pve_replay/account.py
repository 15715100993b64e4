# SPDX-License-Identifier: AGPL-3.0-or-later
"""The documented account on a node of `process`."""

from __future__ import annotations

import asyncio
import ssl

from trial.account import Administrator, make_account

from .process import Login, NodeProcess


async def documented_account(node: NodeProcess) -> Login:
    """Make the account of docs/proxmox-setup.md, with its pool `kubernetes`; its token."""
    tls = ssl.create_default_context(cafile=node.state_dir / "pve/local/pve-ssl.crt")
    root = Administrator(node.url, node.root.tokenid, node.root.secret, tls)
    account = await asyncio.to_thread(make_account, root, {"NODE": "pve", "local-lvm": "local"})
    return Login(account.token_id, account.token_secret)
