# SPDX-License-Identifier: Apache-2.0
"""RemoveContainer: the root filesystem, the bundle and the record of a container. No Proxmox call."""

from __future__ import annotations

import asyncio

from pvecri.errors import NotFound
from pvecri.images.manager import ImageManager
from pvecri.pods.container import bundle
from pvecri.pods.container.exit import ContainerExits
from pvecri.pods.container.stop import ContainerStopper
from pvecri.pods.hooks import Hooks
from pvecri.pods.registry import ContainerEntry, Registry


class ContainerRemover:
    """Removes containers; any number at once."""

    def __init__(
        self,
        registry: Registry,
        images: ImageManager,
        stopper: ContainerStopper,
        exits: ContainerExits,
        hooks: Hooks,
    ) -> None:
        self._registry = registry
        self._images = images
        self._stopper = stopper
        self._exits = exits
        self._hooks = hooks

    async def remove(self, container_id: str) -> None:
        """Remove a container, killing it first if it runs (CRI RemoveContainer).

        Idempotent; an unknown container is no error.
        """
        try:
            container = self._registry.container(container_id)
        except NotFound:
            return
        await self.remove_entry(container)

    async def remove_entry(self, container: ContainerEntry) -> None:
        """As `remove`, by the registry's entry."""
        async with container.lock:  # no start between kill and removal
            await self._stopper.kill(container)
            pod = self._registry.pod_of(container)
            if container.value.front is not None:
                await self._exits.delete_of_front(pod, container)
            for name in bundle.rootfs_names(container.value):
                await self._images.remove_rootfs(name)
            await self._hooks.remove_container(pod, container)
            await asyncio.to_thread(bundle.remove_bundle, container.bundle)
            self._exits.forget(container)
            # Last: while the row is there, a repeated call or recovery removes what is left.
            self._registry.drop_container(container)
