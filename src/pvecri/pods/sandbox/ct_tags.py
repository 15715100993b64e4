# SPDX-License-Identifier: Apache-2.0
"""Tags of pods' CTs (proxmox.tags, proxmox.namespace_tags), set in the background: no pod waits for them.

They cannot be set at creation: Proxmox checks the `tags` of a create against /vms/VMID, not against the pool that
the CT joins, and refuses them to an account with rights on the pool only.
"""

from __future__ import annotations

import asyncio
from functools import partial

from msgspec.structs import replace

from pvecri.config.settings import ProxmoxConfig
from pvecri.model import Sandbox, SandboxPhase
from pvecri.pods.registry import PodEntry, Registry
from pvecri.proxmox.api import ProxmoxApi
from pvecri.proxmox.ctspec import ct_tag, tags_parameter
from pvecri.proxmox.errors import CtNotFound
from pvecri.supervision import Step, attempt_each


class CtTags:
    """`tag_all` tags the CT of every READY pod that has no tags yet; `wanted` is set if there may be one."""

    def __init__(self, registry: Registry, proxmox: ProxmoxApi, settings: ProxmoxConfig) -> None:
        self._registry = registry
        self._proxmox = proxmox
        self._settings = settings
        self.wanted = asyncio.Event()
        self.wanted.set()

    async def tag_all(self) -> None:
        """Tag every CT that has no tags yet; Incomplete if one could not be tagged."""
        self.wanted.clear()
        steps: list[tuple[str, Step]] = [
            (f"setting proxmox.tags of CT {pod.value.vmid} (pod {pod.value.name})", partial(self._tag, pod))
            for pod in self._registry.pods()
            if _untagged(pod) and own_tags(self._settings, pod.value)
        ]
        await attempt_each("CT tags", steps)

    async def _tag(self, pod: PodEntry) -> None:
        tags = tags_parameter(own_tags(self._settings, pod.value))
        try:
            await self._proxmox.configure_ct(pod.value.vmid, tags=tags)
        except CtNotFound:
            return
        if _untagged(pod):  # it may have been stopped meanwhile
            self._registry.save_pod(pod, replace(pod.value, tagged=True), ending=True)


def own_tags(settings: ProxmoxConfig, sandbox: Sandbox) -> tuple[str, ...]:
    """The tags of a pod's CT, as Proxmox accepts them, each once. Pure."""
    tags = settings.tags
    podless = sandbox.front is not None and sandbox.front.kind.is_podless
    if settings.namespace_tags and not podless:
        tags = (*tags, f"ns-{sandbox.config.metadata.namespace}")
    return tuple(dict.fromkeys(map(ct_tag, tags)))


def _untagged(pod: PodEntry) -> bool:
    return pod.value.phase is SandboxPhase.READY and not pod.value.tagged
