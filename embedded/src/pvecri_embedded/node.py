# SPDX-License-Identifier: AGPL-3.0-or-later
"""The embedded node: fakepve's API with the parts that are real here put in their places."""

from __future__ import annotations

import asyncio
import json
import ssl
from typing import Any

from aiohttp import web

from pvecri_embedded.api.accounts import AccountsApi
from pvecri_embedded.api.backup import BackupApi
from pvecri_embedded.api.clone import CloneApi
from pvecri_embedded.api.config import ConfigApi
from pvecri_embedded.api.ha import HaApi
from pvecri_embedded.api.machine import MachineApi
from pvecri_embedded.api.registry_pull import RegistryPullApi
from pvecri_embedded.api.storage import CONTENT, StorageFilesApi
from pvecri_embedded.api.tasks import TaskApi
from pvecri_embedded.api.views import ViewsApi
from pvecri_embedded.api.wording import WordingApi
from pvecri_embedded.http import KEEP_ALIVE_S, REFUSAL_DELAY_S, as_pveproxy
from pvecri_embedded.identity import TOKEN_ID, TOKEN_NAME, Identity
from pvecri_embedded.layout import Layout, write_atomically
from pvecri_embedded.usercfg import ROOT, Token

DRAIN_TIMEOUT_S = 60.0
UPLOAD_MAX_BYTES = 1024**3


class EmbeddedNode(
    TaskApi,
    AccountsApi,
    StorageFilesApi,
    RegistryPullApi,
    ConfigApi,
    CloneApi,
    HaApi,
    BackupApi,
    ViewsApi,
    MachineApi,
    WordingApi,
):
    """One node. ``start`` to serve, ``stop`` to end the API; the CTs run on."""

    def __init__(
        self, layout: Layout, identity: Identity, *, host: str, port: int, serve_faults: bool = False
    ) -> None:
        self.disks = {}
        super().__init__(layout, host=host, port=port, root_password=identity.root_password)
        self.serve_faults = serve_faults
        self.refusal_delay = REFUSAL_DELAY_S
        self.version, self.release_version = "9.2.11", "9.2"
        self.client_max_size = UPLOAD_MAX_BYTES
        self.body_timeout = 0.0
        self.max_requests = 0  # fakepve would keep the bodies of the last requests
        self.storages: dict[str, dict[str, Any]] = {}
        self.add_storage("local", "dir", CONTENT)
        self.access.users[ROOT].tokens[TOKEN_NAME] = Token(privsep=0)
        self.apitokens[TOKEN_ID] = identity.token_secret

    async def serve(self, certificate: str, key: str) -> None:
        """Take over what an earlier process left, then answer requests."""
        self.layout.make_directories()
        self.load_tasks()
        self.load_access()
        self._load_pools()
        self.load()
        self.adopt_running()
        await self._listen(certificate, key)
        self._rounds = [asyncio.create_task(self.run_status_rounds()), asyncio.create_task(self.run_ha_rounds())]

    async def _listen(self, certificate: str, key: str) -> None:
        """What fakepve's ``start`` does, with pveproxy's patience for idle connections."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, key)
        self.runner = web.AppRunner(self._build_app(), keepalive_timeout=KEEP_ALIVE_S)
        await self.runner.setup()
        await web.TCPSite(self.runner, self.host, self.port, ssl_context=context).start()
        if not self.port:
            self.port = self.runner.addresses[0][1]

    async def shut_down(self) -> None:
        """Answer no more, let running tasks end, let go of the CTs."""
        # First: a request or a task that a fault holds would never end.
        self.faults.clear()
        await self.stop()
        await self.drain_tasks(DRAIN_TIMEOUT_S)
        for rounds in self._rounds:
            rounds.cancel()
        self.archive_ended()
        self.forget_running()

    def _build_app(self) -> web.Application:
        app: web.Application = super()._build_app()
        app.middlewares.insert(0, as_pveproxy(self.refusal_delay))
        if self.serve_faults:
            app.middlewares.insert(0, self.faults.middleware)
        return app

    def _sync_pools(self) -> None:
        super()._sync_pools()
        pools = {
            name: {
                "vmids": sorted(members),
                "comment": self._pool_meta(name)["comment"],
                "storage": sorted(self._pool_meta(name)["storage"]),
            }
            for name, members in self.pools.items()
        }
        write_atomically(self.layout.pools, json.dumps(pools))

    def _load_pools(self) -> None:
        if not self.layout.pools.exists():
            return
        for name, pool in json.loads(self.layout.pools.read_text()).items():
            self.pools[name] = set(pool["vmids"])
            self.pool_info[name] = {"comment": pool["comment"], "storage": set(pool["storage"])}
