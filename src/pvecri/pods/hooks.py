# SPDX-License-Identifier: Apache-2.0
"""Where others may watch and change what happens to pods and containers; NRI's plugins do (nri/).

The Pod Manager calls a hook at each turn of a pod's or container's life. Those that may refuse say so; no other
raises. A hook sets `told` of what it is called for, and is called again safely: what was told is not told twice.
"""

from __future__ import annotations

from pvecri.model import Resources
from pvecri.oci.adjustment import Adjustment
from pvecri.pods.registry import ContainerEntry, PodEntry


class Hooks:
    """See the module. PvecriError is how a hook refuses. These here do nothing: nobody watches."""

    async def run_pod(self, pod: PodEntry) -> None:
        """The pod is complete and will be READY next. May refuse; then `remove_pod` follows."""

    async def update_pod(self, pod: PodEntry, resources: Resources, overhead: Resources) -> None:
        """The pod's CT will be resized: what is not said stays. May refuse."""

    async def updated_pod(self, pod: PodEntry) -> None:
        """The pod's CT was resized."""

    async def stop_pod(self, pod: PodEntry) -> None:
        """The pod's containers have ended; its network and its CT go next."""

    async def remove_pod(self, pod: PodEntry) -> None:
        """The pod is gone, or will not come to be."""

    async def create_container(self, pod: PodEntry, container: ContainerEntry) -> Adjustment | None:
        """The container's root and OCI spec are there. May refuse; then `remove_container` follows.

        The answer is what to change in it.
        """
        return None

    async def created_container(self, pod: PodEntry, container: ContainerEntry) -> None:
        """The container is CREATED."""

    async def start_container(self, pod: PodEntry, container: ContainerEntry) -> None:
        """The container will be started. May refuse."""

    async def started_container(self, pod: PodEntry, container: ContainerEntry) -> None:
        """The container is RUNNING."""

    async def update_container(self, pod: PodEntry, container: ContainerEntry, changes: Resources) -> Resources:
        """The container's limits will change: what is not said stays. May refuse, and change the changes."""
        return changes

    async def updated_container(self, pod: PodEntry, container: ContainerEntry) -> None:
        """The container's limits have changed."""

    async def stop_container(self, pod: PodEntry, container: ContainerEntry) -> None:
        """The container has ended, by itself or not, or will never run."""

    async def remove_container(self, pod: PodEntry, container: ContainerEntry) -> None:
        """The container goes, or will not come to be."""
