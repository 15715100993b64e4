# SPDX-License-Identifier: Apache-2.0
"""Health of Proxmox and of the image store, for the conditions of CRI Status. Polled; answered from memory."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from pvecri.config.settings import Config, ProxmoxConfig
from pvecri.errors import NotFound, PvecriError
from pvecri.network.manager import NetworkStatus
from pvecri.proxmox.answers import StorageStatus
from pvecri.proxmox.api import ProxmoxApi
from pvecri.supervision import Failing

log = logging.getLogger(__name__)

INTERVAL = 15.0
INTERVAL_UNHEALTHY = 2.0
"""Seconds between two polls of Proxmox."""

MOST_SHOWN = 5
"""Failing background tasks that a message names."""

BACKGROUND = "BackgroundWorkHealthy"
"""The condition that does not affect RuntimeReady."""

_WITHOUT_DIRECTORIES = frozenset({"lvm", "lvmthin", "rbd"})
"""Storage types without directories or subvolumes: a rootfs of size 0 cannot be created on them."""


@dataclass(frozen=True)
class Condition:
    """CRI RuntimeCondition; `reason` (CamelCase) and `message` are set if it is not met.

    A condition that is met may have a message, as a warning.
    """

    type: str
    met: bool
    reason: str = ""
    message: str = ""

    @property
    def required(self) -> bool:
        """Whether pods can be created only while it is met."""
        return self.type != BACKGROUND


def image_store_condition(config: Config) -> Condition:
    """Whether images can be fetched and stored."""
    name = "ImageStoreReady"
    if not _is_installed(config.images.skopeo):
        message = f"the program {config.images.skopeo!r} is not installed (images.skopeo)"
        return Condition(name, False, "ImageFetcherMissing", message)
    # For root, access(2) fails on a read-only filesystem (EROFS) and not for a file's mode.
    if not os.access(config.images_root, os.W_OK):
        message = f"{config.images_root} is not writable (images.root)"
        return Condition(name, False, "ImageStoreNotWritable", message)
    return Condition(name, True)


_programs: dict[str, str] = {}
"""Where programs were found last: every Status asks, and a search looks at each directory of PATH."""


def _is_installed(program: str) -> bool:
    if (known := _programs.get(program)) and os.access(known, os.X_OK):
        return True
    found = shutil.which(program)
    if found is not None:
        _programs[program] = found
    return found is not None


def background_condition(failing: Sequence[Failing]) -> Condition:
    """Not met while background work keeps failing; the message has the first MOST_SHOWN."""
    if not failing:
        return Condition(BACKGROUND, True)
    shown = [str(each) for each in failing[:MOST_SHOWN]]
    if len(failing) > MOST_SHOWN:
        shown.append(f"and {len(failing) - MOST_SHOWN} more")
    return Condition(BACKGROUND, False, "BackgroundWorkFails", "; ".join(shown))


def conditions(*parts: Condition, network: NetworkStatus, background: Condition) -> list[Condition]:
    """The conditions of CRI Status: RuntimeReady is met if all of `parts` are. Pure.

    `background` does not affect it: the node's pods would be evicted for statistics that fail. Its message is
    repeated in RuntimeReady's, which clients show.
    """
    failed = next((part for part in parts if not part.met), None)
    shown = (failed.reason, failed.message) if failed else ("", background.message)
    return [
        Condition("RuntimeReady", failed is None, *shown),
        Condition("NetworkReady", network.ready, network.reason, network.message),
        *parts,
        background,
    ]


def _unsuitable(storage: StorageStatus | None, name: str, setting: str, content: str) -> Condition | None:
    """Why proxmox.`setting` cannot be this storage, which needs the content type `content`; None if it can.

    `storage` is None if there is no storage of that name.
    """
    if storage is None:
        message = f"storage {name} does not exist in Proxmox (proxmox.{setting})"
        return Condition("ProxmoxReady", False, "ProxmoxStorageMissing", message)
    if not storage.active:
        message = f"{storage.problem(name)} (proxmox.{setting})"
        return Condition("ProxmoxReady", False, "ProxmoxStorageInactive", message)
    if content not in storage.contents:
        message = f"storage {name} does not allow content {content} (proxmox.{setting})"
        return Condition("ProxmoxReady", False, "ProxmoxStorageUnsuitable", message)
    return None


class ProxmoxHealth:
    """Polls whether Proxmox answers, accepts our credentials, grants the privileges and has the storages."""

    def __init__(self, config: ProxmoxConfig, proxmox: ProxmoxApi) -> None:
        self._config = config
        self._proxmox = proxmox
        self.version = ""
        self.condition = Condition("ProxmoxReady", False, "ProxmoxUnknown", "Proxmox has not answered yet")

    async def pause(self) -> None:
        """Sleep until the next poll is due."""
        await asyncio.sleep(INTERVAL if self.condition.met else INTERVAL_UNHEALTHY)

    async def poll(self) -> None:
        """Query Proxmox once and update `condition` and `version`."""
        try:
            condition = await self._check()
        # An answer is a condition of Proxmox; a fault is the supervisor's (decision 0068).
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

    async def _check(self) -> Condition:
        # First: it needs no privilege, so if it fails it is the connection or the credentials.
        self.version = (await self._proxmox.version()).version
        name = "ProxmoxReady"
        templates = await self._status(self._config.template_storage)
        storage = await self._status(self._config.storage)
        problem = _unsuitable(templates, self._config.template_storage, "template_storage", "vztmpl")
        if problem := problem or _unsuitable(storage, self._config.storage, "storage", "rootdir"):
            return problem
        if storage and storage.type in _WITHOUT_DIRECTORIES and not self._config.rootfs_size_gib:
            message = f"storage {self._config.storage} is of type {storage.type}, which has no plain directories: "
            message += "proxmox.rootfs_size_gib must be at least 1"
            return Condition(name, False, "ProxmoxStorageUnsuitable", message)
        missing = await self._proxmox.missing_privileges()
        if missing:
            return Condition(name, False, "ProxmoxPrivilegesMissing", "; ".join(missing))
        return Condition(name, True)

    async def _status(self, storage: str) -> StorageStatus | None:
        try:
            return await self._proxmox.storage_status(storage)
        except NotFound:
            return None
