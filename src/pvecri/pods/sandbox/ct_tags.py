# SPDX-License-Identifier: Apache-2.0
"""Tags of pods' CTs (proxmox.tags), set in the background once the pod is READY: no pod waits for them.

They cannot be set at creation: Proxmox checks the `tags` of a create against /vms/VMID, not against the pool that
the CT joins, and refuses them to an account with rights on the pool only.
"""

from __future__ import annotations

import asyncio
from functools import partial

from msgspec.structs import replace

from pvecri.model import SandboxPhase
from pvecri.pods.registry import PodEntry, Registry
from pvecri.proxmox.api import ProxmoxApi
from pvecri.proxmox.ctspec import tags_parameter
from pvecri.proxmox.errors import CtNotFound
from pvecri.supervision import Step, attempt_each


class CtTags:
    """`tag_all` tags the CT of every READY pod that has no tags yet; `wanted` is set if there may be one."""

    def __init__(self, registry: Registry, proxmox: ProxmoxApi, tags: tuple[str, ...]) -> None:
        self._registry = registry
        self._proxmox = proxmox
        self._tags = tags_parameter(tags)
        self.wanted = asyncio.Event()
        self.wanted.set()

    async def tag_all(self) -> None:
        """Tag every CT that has no tags yet; Incomplete if one could not be tagged."""
        self.wanted.clear()
        if not self._tags:
            return
        steps: list[tuple[str, Step]] = [
            (f"setting proxmox.tags of CT {pod.value.vmid} (pod {pod.value.name})", partial(self._tag, pod))
            for pod in self._registry.pods()
            if _untagged(pod)
        ]
        await attempt_each("CT tags", steps)

    async def _tag(self, pod: PodEntry) -> None:
        try:
            await self._proxmox.configure_ct(pod.value.vmid, tags=self._tags)
        except CtNotFound:
            return
        if _untagged(pod):  # it may have been stopped meanwhile
            self._registry.save_pod(pod, replace(pod.value, tagged=True), ending=True)


def _untagged(pod: PodEntry) -> bool:
    return pod.value.phase is SandboxPhase.READY and not pod.value.tagged
