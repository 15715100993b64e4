# SPDX-License-Identifier: Apache-2.0
"""Is everything there that a pod needs? Asked of Proxmox now and then, answered from memory."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from pvecri.config import Config, ProxmoxConfig
from pvecri.errors import PvecriError
from pvecri.network.manager import NetworkStatus
from pvecri.proxmox.answers import StorageStatus
from pvecri.proxmox.api import ProxmoxApi
from pvecri.supervision import Failing

log = logging.getLogger(__name__)

INTERVAL = 15.0
INTERVAL_WHEN_ILL = 2.0
"""Seconds between two looks at Proxmox."""

MOST_SHOWN = 5
"""Pieces of failing background work that a message names."""

_WITHOUT_DIRECTORIES = frozenset({"lvm", "lvmthin", "rbd"})
"""Types of storage whose volumes all have a size."""


@dataclass(frozen=True)
class Condition:
    """One line of the runtime's status (CRI RuntimeCondition); reason and message say why it is not met.

    A condition that is met may have a message: a warning.
    """

    type: str
    met: bool
    reason: str = ""
    message: str = ""


def image_store_condition(config: Config) -> Condition:
    """Whether images can be fetched and written."""
    name = "ImageStoreReady"
    if shutil.which(config.images.skopeo) is None:
        message = f"the program {config.images.skopeo!r} is not installed (images.skopeo)"
        return Condition(name, False, "ImageFetcherMissing", message)
    if not os.access(config.images_root, os.W_OK):
        message = f"{config.images_root} cannot be written to (images.root)"
        return Condition(name, False, "ImageStoreNotWritable", message)
    return Condition(name, True)


def background_condition(failing: Sequence[Failing]) -> Condition:
    """Whether no background work keeps failing. The message has the first MOST_SHOWN."""
    name = "BackgroundWorkHealthy"
    if not failing:
        return Condition(name, True)
    shown = [str(each) for each in failing[:MOST_SHOWN]]
    if len(failing) > MOST_SHOWN:
        shown.append(f"and {len(failing) - MOST_SHOWN} more")
    return Condition(name, False, "BackgroundWorkFails", "; ".join(shown))


def conditions(*parts: Condition, network: NetworkStatus, background: Condition) -> list[Condition]:
    """All of the runtime's status. It is ready when all of `parts` are.

    `background` does not make it unready: the node's pods would be moved away for statistics that fail. Its
    message is RuntimeReady's too, where people look first.
    """
    failed = next((part for part in parts if not part.met), None)
    shown = (failed.reason, failed.message) if failed else ("", background.message)
    return [
        Condition("RuntimeReady", failed is None, *shown),
        Condition("NetworkReady", network.ready, network.reason, network.message),
        *parts,
        background,
    ]


def _unsuitable(storage: StorageStatus, name: str, setting: str, content: str) -> Condition | None:
    """Why a storage cannot be what proxmox.`setting` says it is; `content` is Proxmox's name of what it must
    hold.
    """
    if not storage.active:
        message = f"storage {name} is not active (proxmox.{setting})"
        return Condition("ProxmoxReady", False, "ProxmoxStorageInactive", message)
    if content not in storage.contents:
        message = f"storage {name} does not hold content {content} (proxmox.{setting})"
        return Condition("ProxmoxReady", False, "ProxmoxStorageUnsuitable", message)
    return None


class ProxmoxHealth:
    """Watches whether Proxmox answers, accepts our token, grants what we need and has the storage."""

    def __init__(self, config: ProxmoxConfig, proxmox: ProxmoxApi) -> None:
        self._config = config
        self._proxmox = proxmox
        self.version = ""
        self.condition = Condition("ProxmoxReady", False, "ProxmoxNotAsked", "Proxmox has not answered yet")

    async def pause(self) -> None:
        """Until it is time for the next look."""
        await asyncio.sleep(INTERVAL if self.condition.met else INTERVAL_WHEN_ILL)

    async def look(self) -> None:
        """Look once and remember the answer."""
        try:
            condition = await self._look()
        except PvecriError as error:
            reason = f"Proxmox{type(error).__name__.removeprefix('Proxmox')}"
            condition = Condition("ProxmoxReady", False, reason, str(error))
        if condition != self.condition:
            log.log(
                logging.INFO if condition.met else logging.WARNING,
                "Proxmox %s: %s",
                "ready" if condition.met else "not ready",
                condition.message or self.version,
            )
        self.condition = condition

    async def _look(self) -> Condition:
        self.version = (await self._proxmox.version()).version
        name = "ProxmoxReady"
        templates = await self._proxmox.storage_status(self._config.template_storage)
        storage = await self._proxmox.storage_status(self._config.storage)
        problem = _unsuitable(templates, self._config.template_storage, "template_storage", "vztmpl")
        if problem := problem or _unsuitable(storage, self._config.storage, "storage", "rootdir"):
            return problem
        if storage.type in _WITHOUT_DIRECTORIES and not self._config.rootfs_size_gib:
            message = f"storage {self._config.storage} is of type {storage.type}, which has no plain directories: "
            message += "proxmox.rootfs_size_gib must be at least 1"
            return Condition(name, False, "ProxmoxStorageUnsuitable", message)
        missing = await self._proxmox.missing_privileges()
        if missing:
            return Condition(name, False, "ProxmoxPrivilegesMissing", "; ".join(missing))
        return Condition(name, True)
