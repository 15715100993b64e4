# SPDX-License-Identifier: Apache-2.0
"""Tags of pods' CTs (proxmox.tags), set once the pod runs: they are for people, and no pod waits for them.

Proxmox checks `tags` of a create on /vms/VMID itself, without the pool that the CT is about to join. An account
with rights on the pool only may set them when the CT is in it.
"""

from __future__ import annotations

import asyncio
import logging

from msgspec.structs import replace

from pvecri.errors import PvecriError
from pvecri.model import SandboxPhase
from pvecri.pods.registry import PodEntry, Registry
from pvecri.proxmox.api import ProxmoxApi
from pvecri.proxmox.ctspec import tags_parameter
from pvecri.proxmox.errors import CtNotFound

log = logging.getLogger(__name__)

RETRY_FIRST = 1.0
RETRY_MAX = 60.0
"""Seconds between tries."""


class CtTags:
    """`wanted` wakes `run`, which tags every ready pod's CT that has no tags yet."""

    def __init__(self, registry: Registry, proxmox: ProxmoxApi, tags: tuple[str, ...]) -> None:
        self._registry = registry
        self._proxmox = proxmox
        self._tags = tags_parameter(tags)
        self.wanted = asyncio.Event()
        self.wanted.set()

    async def run(self) -> None:
        """Tag CTs as pods come, until cancelled; what fails is logged and tried again."""
        if not self._tags:
            return
        pause = RETRY_FIRST
        while True:
            await self.wanted.wait()
            self.wanted.clear()
            if await self._tag_all():
                pause = RETRY_FIRST
                continue
            self.wanted.set()
            await asyncio.sleep(pause)
            pause = min(pause * 2, RETRY_MAX)

    async def _tag_all(self) -> bool:
        """Whether every ready pod's CT has its tags now."""
        try:
            results = [await self._tag(pod) for pod in self._registry.pods() if _untagged(pod)]
        except Exception:  # nobody waits for this task: a fault is logged, and its work tried again
            log.exception("tags of CTs")
            return False
        return all(results)

    async def _tag(self, pod: PodEntry) -> bool:
        try:
            await self._proxmox.configure_ct(pod.value.vmid, tags=self._tags)
        except CtNotFound:
            return True
        except PvecriError as error:
            log.warning("CT %d of pod %s gets no tags (proxmox.tags): %s", pod.value.vmid, pod.value.name, error)
            return False
        if _untagged(pod):  # it may have been stopped meanwhile
            self._registry.save_pod(pod, replace(pod.value, tagged=True))
        return True


def _untagged(pod: PodEntry) -> bool:
    return pod.value.phase is SandboxPhase.READY and not pod.value.tagged
