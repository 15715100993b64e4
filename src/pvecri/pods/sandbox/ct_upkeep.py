# SPDX-License-Identifier: Apache-2.0
"""Background work on the CTs of pods, so that no CRI call waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from pvecri.config.settings import Config
from pvecri.pods.registry import Registry
from pvecri.pods.sandbox import ct_restarts, ct_settings, notes_updater
from pvecri.pods.sandbox.ct import SandboxCts
from pvecri.pods.sandbox.ct_restarts import RestartedCts
from pvecri.pods.sandbox.ct_settings import CtSettings
from pvecri.pods.sandbox.ct_tags import CtTags
from pvecri.pods.sandbox.notes_updater import NotesUpdater
from pvecri.proxmox.api import ProxmoxApi
from pvecri.supervision import Supervisor


class CtUpkeep:
    """Composes the parts; `start` runs them until the supervisor is closed."""

    def __init__(
        self,
        config: Config,
        registry: Registry,
        proxmox: ProxmoxApi,
        cts: SandboxCts,
        proxmox_ready: Callable[[], bool],
    ) -> None:
        self.tags = CtTags(registry, proxmox, config.proxmox)
        self._restarted = RestartedCts(registry, cts)
        self._settings = CtSettings(registry, proxmox, cts, config.proxmox)
        self._notes = NotesUpdater(registry, cts, proxmox_ready)

    def start(self, supervisor: Supervisor) -> None:
        """Start the background tasks."""
        supervisor.repeat("CT tags", self.tags.tag_all, self.tags.wanted.wait)
        pause = partial(asyncio.sleep, ct_restarts.INTERVAL)
        supervisor.repeat("restarted CTs", self._restarted.stop_all, pause)
        pause = partial(asyncio.sleep, ct_settings.INTERVAL)
        supervisor.repeat("settings of CTs", self._settings.look, pause)
        supervisor.repeat("notes of CTs", self._notes.update, partial(asyncio.sleep, notes_updater.INTERVAL))
